# cmake -DBUILD=<build folder> -DROOT=<source tree> -DCOMPILER=<c++> -DNM=<nm> -P package.cmake: installs into a fresh prefix,
# looks at what the library exports, then configures, builds and runs a project outside the tree.
cmake_minimum_required(VERSION 3.25)
set(work ${BUILD}/tests/package/work)
file(REMOVE_RECURSE ${work})

function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE status OUTPUT_VARIABLE text ERROR_VARIABLE text)
  if(NOT status EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "${command}\nended with ${status}:\n${text}")
  endif()
  set(text "${text}" PARENT_SCOPE)
endfunction()

run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${work}/prefix)

file(GLOB_RECURSE library ${work}/prefix/libweft.so)
run(${NM} --dynamic --defined-only --format=just-symbols ${library})
string(REGEX REPLACE "\n" ";" symbols "${text}")
set(foreign ${symbols})
list(FILTER foreign EXCLUDE REGEX "^(_Z(N|NK|NR|NO|NKR|TVN|TTN|TIN|TSN|GVN|T[hv][n0-9_]+(N|NK))4weft.*)?$")
if(foreign)
  message(FATAL_ERROR "${library} exports symbols that are not ours: ${foreign}")
endif()
list(LENGTH symbols num_symbols)
if(num_symbols LESS 100)
  message(FATAL_ERROR "${library} exports only ${num_symbols} symbols")
endif()

run(${CMAKE_COMMAND} -S ${ROOT}/tests/package/consumer -B ${work}/build -DCMAKE_PREFIX_PATH=${work}/prefix
  -DCMAKE_CXX_COMPILER=${COMPILER} -DCMAKE_BUILD_TYPE=Debug -DEXAMPLES=${ROOT}/tools/examples)
run(${CMAKE_COMMAND} --build ${work}/build --parallel 2)
run(${work}/build/own_function)
run(${work}/build/train_text ${ROOT}/README.md 3)
run(${work}/build/consumer)
message(NOTICE "${num_symbols} symbols exported, the outside project says: ${text}")
