# cmake -DROOT=<source tree> -DLAYER=<folder of include/weft> -DCOMPILER=<c++> -P stands_alone.cmake: each public header of
# the layer compiles as the only include of a file.
cmake_minimum_required(VERSION 3.25)
file(GLOB_RECURSE headers RELATIVE ${ROOT}/include ${ROOT}/include/weft/${LAYER})
if(IS_DIRECTORY ${ROOT}/include/weft/${LAYER})
  file(GLOB_RECURSE headers RELATIVE ${ROOT}/include ${ROOT}/include/weft/${LAYER}/*.h)
endif()
if(NOT headers)
  message(FATAL_ERROR "no headers in include/weft/${LAYER}")
endif()
set(broken "")
foreach(header IN LISTS headers)
  execute_process(
    COMMAND ${COMPILER} -std=c++20 -Wall -Wextra -Werror -fsyntax-only -I${ROOT}/include -include ${header} -x c++ /dev/null
    RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    list(APPEND broken ${header})
  endif()
endforeach()
if(broken)
  message(FATAL_ERROR "do not compile alone: ${broken}")
endif()
