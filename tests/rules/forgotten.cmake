# cmake -DROOT=<folder> -P forgotten.cmake: a file that no list names is refused with the name of the list.
cmake_minimum_required(VERSION 3.25)
include(${CMAKE_CURRENT_LIST_DIR}/../../cmake/forgotten.cmake)
weft_refuse_forgotten(${ROOT} src/nn/CMakeLists.txt other.cpp)
