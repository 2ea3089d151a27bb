# Compiler settings and the helpers weft_library(), weft_kernels(), weft_program() and weft_test().
include(GNUInstallDirs)

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()
find_program(WEFT_CCACHE ccache)
if(WEFT_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${WEFT_CCACHE})
endif()
find_package(OpenMP REQUIRED)

# Flags of our own targets only; none of them leaks to users. -ffast-math is never used: it breaks the rounding trick in exp.
add_library(weft_flags INTERFACE)
target_compile_options(weft_flags INTERFACE -Wall -Wextra -fno-math-errno -fno-trapping-math -ffp-contract=fast
  $<$<BOOL:${WEFT_WERROR}>:-Werror>)
target_include_directories(weft_flags INTERFACE
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>)
if(WEFT_SANITIZE)
  string(REPLACE "," ";" sanitizers "${WEFT_SANITIZE}")
  foreach(sanitizer IN LISTS sanitizers)
    target_compile_options(weft_flags INTERFACE -fsanitize=${sanitizer} -fno-omit-frame-pointer -fno-sanitize-recover=all)
    target_link_options(weft_flags INTERFACE -fsanitize=${sanitizer})
  endforeach()
endif()

# Instruction sets in which the kernels of weft_kernels() are compiled; one is chosen at start (ops/cpu/isa.h).
set(WEFT_ISAS baseline)
set(WEFT_ISA_FLAGS_baseline "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  list(APPEND WEFT_ISAS avx2 avx512)
  set(WEFT_ISA_FLAGS_avx2 -march=haswell -maes -mpclmul)
  set(WEFT_ISA_FLAGS_avx512 -march=skylake-avx512 -mprefer-vector-width=512)
endif()

# weft_library(NAME SOURCES ... DEPS layers... [PRIVATE third-party...]): one static library per layer, target weft_NAME.
set(WEFT_LAYERS "" CACHE INTERNAL "")
set(WEFT_PRIVATE_LIBRARIES "" CACHE INTERNAL "")
function(weft_library name)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPS;PRIVATE" ${ARGN})
  if(NOT arg_SOURCES)  # a layer without files of its own
    add_library(weft_${name} INTERFACE)
    foreach(dep IN LISTS arg_DEPS)
      target_link_libraries(weft_${name} INTERFACE weft_${dep})
    endforeach()
    return()
  endif()
  add_library(weft_${name} STATIC ${arg_SOURCES})
  foreach(dep IN LISTS arg_DEPS)
    target_link_libraries(weft_${name} PUBLIC weft_${dep})
  endforeach()
  target_link_libraries(weft_${name} PRIVATE weft_flags ${arg_PRIVATE})
  set(WEFT_LAYERS ${WEFT_LAYERS} weft_${name} CACHE INTERNAL "")
  set(WEFT_PRIVATE_LIBRARIES ${WEFT_PRIVATE_LIBRARIES} ${arg_PRIVATE} CACHE INTERNAL "")   # for the installed library
endfunction()

# weft_kernels(LAYER sources...): compiles each source once per instruction set, with WEFT_ISA set to its name, into weft_LAYER.
function(weft_kernels layer)
  foreach(isa IN LISTS WEFT_ISAS)
    string(MAKE_C_IDENTIFIER "${ARGN}" suffix)
    string(MD5 suffix "${suffix}")
    string(SUBSTRING ${suffix} 0 6 suffix)
    set(objects weft_${layer}_${isa}_${suffix})
    add_library(${objects} OBJECT ${ARGN})
    target_compile_definitions(${objects} PRIVATE WEFT_ISA=${isa})
    target_compile_options(${objects} PRIVATE ${WEFT_ISA_FLAGS_${isa}} $<$<NOT:$<CONFIG:Debug>>:-O3> $<$<CONFIG:Debug>:-O1>)
    target_link_libraries(${objects} PRIVATE weft_flags)
    target_sources(weft_${layer} PRIVATE $<TARGET_OBJECTS:${objects}>)
  endforeach()
endfunction()

# weft_test(NAME LABELS ... SOURCES ... DEPS ... [PRIVATE ...]): one GoogleTest program; each TEST is a ctest entry.
function(weft_test name)
  cmake_parse_arguments(arg "" "" "LABELS;SOURCES;DEPS;PRIVATE" ${ARGN})
  add_executable(${name} ${arg_SOURCES})
  foreach(dep IN LISTS arg_DEPS)
    target_link_libraries(${name} PRIVATE weft_${dep})
  endforeach()
  target_link_libraries(${name} PRIVATE weft_test_support weft_flags ${arg_PRIVATE})
  gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST DISCOVERY_TIMEOUT 60 TEST_LIST ${name}_tests)
  # Labels are set when ctest has found the tests: gtest_discover_tests() itself keeps only the first of several.
  set(labels ${CMAKE_CURRENT_BINARY_DIR}/${name}_labels.cmake)
  file(CONFIGURE OUTPUT ${labels} @ONLY CONTENT [[
foreach(test IN LISTS @name@_tests)
  set_tests_properties("${test}" PROPERTIES LABELS "@arg_LABELS@")
endforeach()
]])
  set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES ${labels})
endfunction()
