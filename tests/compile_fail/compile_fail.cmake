# cmake -DCASE=<file.cpp> -DROOT=<source tree> -DCOMPILER=<c++> -P compile_fail.cmake: the file must compile as it is, and with
# WEFT_MISUSE defined it must not, with the text of its line "// expect: ..." in what the compiler says.
cmake_minimum_required(VERSION 3.25)
set(compile ${COMPILER} -std=c++20 -fsyntax-only -I${ROOT}/include)

execute_process(COMMAND ${compile} ${CASE} RESULT_VARIABLE status ERROR_VARIABLE errors)
if(NOT status EQUAL 0)
  message(FATAL_ERROR "${CASE} must compile without WEFT_MISUSE:\n${errors}")
endif()

file(STRINGS ${CASE} expected REGEX "^// expect: ")
string(REPLACE "// expect: " "" expected "${expected}")
if(NOT expected)
  message(FATAL_ERROR "${CASE} has no line '// expect: <text of the compiler's error>'")
endif()
execute_process(COMMAND ${compile} -DWEFT_MISUSE ${CASE} RESULT_VARIABLE status ERROR_VARIABLE errors)
if(status EQUAL 0)
  message(FATAL_ERROR "${CASE} compiles with WEFT_MISUSE, but must not")
endif()
string(FIND "${errors}" "${expected}" position)
if(position EQUAL -1)
  message(FATAL_ERROR "'${expected}' is not in:\n${errors}")
endif()
