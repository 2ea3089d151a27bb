# The installed package: weft::weft is one shared library made of all layers, with its headers, and the weft command.
# Only symbols of namespace weft leave the library, and what it is built from (oneDNN, Protocol Buffers, ...) is linked
# privately: a program that uses it needs none of that, and gets no flags but C++20.
include(CMakePackageConfigHelpers)

# A sanitizer's run-time library belongs to the program, so those builds have no shared library to install.
if(WEFT_SANITIZE)
  return()
endif()

set(exports ${PROJECT_SOURCE_DIR}/cmake/exports.map)
add_library(weft_shared SHARED ${exports})
add_library(weft::weft ALIAS weft_shared)
set_target_properties(weft_shared PROPERTIES
  OUTPUT_NAME weft EXPORT_NAME weft LINKER_LANGUAGE CXX VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR} LINK_DEPENDS ${exports})
target_include_directories(weft_shared INTERFACE
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
target_compile_features(weft_shared INTERFACE cxx_std_20)
# Whole archives by path: a layer that is named as a target would come a second time with each layer that links it.
set(archives ${WEFT_LAYERS})
list(TRANSFORM archives REPLACE "(.+)" "$<TARGET_FILE:\\1>")
find_package(fmt REQUIRED)  # imported targets are known in the folder that finds them
find_package(nlohmann_json REQUIRED)
find_package(ZLIB REQUIRED)
set(third_party ${WEFT_PRIVATE_LIBRARIES})
list(REMOVE_ITEM third_party ${WEFT_LAYERS})
list(REMOVE_DUPLICATES third_party)
add_dependencies(weft_shared ${WEFT_LAYERS})
set_property(TARGET weft_shared APPEND PROPERTY LINK_DEPENDS ${archives})
target_link_libraries(weft_shared PRIVATE -Wl,--whole-archive ${archives} -Wl,--no-whole-archive ${third_party})
target_link_options(weft_shared PRIVATE -Wl,--version-script=${exports} -Wl,--no-undefined -Wl,--as-needed
  -Wl,-Bsymbolic-functions)  # calls inside the library need no table

# `cmake --build ... --target weft` builds what `cmake --install` takes: the program and the library.
add_dependencies(weft weft_shared)

install(TARGETS weft_shared EXPORT weftTargets)
install(TARGETS weft)
install(DIRECTORY include/weft TYPE INCLUDE FILES_MATCHING PATTERN "*.h")
set(package ${CMAKE_INSTALL_LIBDIR}/cmake/weft)
install(EXPORT weftTargets NAMESPACE weft:: DESTINATION ${package})
configure_package_config_file(cmake/weftConfig.cmake.in ${PROJECT_BINARY_DIR}/weftConfig.cmake INSTALL_DESTINATION ${package})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/weftConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/weftConfig.cmake ${PROJECT_BINARY_DIR}/weftConfigVersion.cmake DESTINATION ${package})
