# weft_protobuf(SOURCES PROTOS files... [DESCRIPTOR path]): makes C++ of Protocol Buffers messages in ${WEFT_GENERATED}, where a file lies
# as its .proto lies in the tree, and puts the names of the sources into the variable SOURCES. With DESCRIPTOR the messages' descriptors
# with their comments are written to path.desc. A target that includes the headers takes ${WEFT_GENERATED} as a folder of includes.
find_package(Protobuf REQUIRED)
set(WEFT_GENERATED ${PROJECT_BINARY_DIR}/generated)

function(weft_protobuf sources)
  cmake_parse_arguments(arg "" "DESCRIPTOR" "PROTOS" ${ARGN})
  set(outputs "")
  # Made aside, and copied if they differ: a change of one .proto compiles nothing that includes the others' headers.
  set(aside ${WEFT_GENERATED}/protoc)
  set(copies "")
  foreach(proto IN LISTS arg_PROTOS)
    string(REGEX REPLACE "[.]proto$" "" name ${proto})
    foreach(file IN ITEMS ${name}.pb.cc ${name}.pb.h)
      list(APPEND outputs ${WEFT_GENERATED}/${file})
      list(APPEND copies COMMAND ${CMAKE_COMMAND} -E copy_if_different ${aside}/${file} ${WEFT_GENERATED}/${file})
    endforeach()
    cmake_path(GET name PARENT_PATH folder)
    file(MAKE_DIRECTORY ${WEFT_GENERATED}/${folder} ${aside}/${folder})
  endforeach()
  set(descriptor "")
  set(description "")
  if(arg_DESCRIPTOR)
    set(description ${arg_DESCRIPTOR}.desc)
    set(descriptor --include_source_info --include_imports --descriptor_set_out=${description})
  endif()
  list(TRANSFORM arg_PROTOS PREPEND ${PROJECT_SOURCE_DIR}/ OUTPUT_VARIABLE files)
  add_custom_command(
    OUTPUT ${outputs} ${description}
    COMMAND protobuf::protoc --proto_path=${PROJECT_SOURCE_DIR} --cpp_out=${aside} ${descriptor} ${arg_PROTOS}
    ${copies}
    DEPENDS ${files} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR} VERBATIM)
  list(FILTER outputs INCLUDE REGEX "[.]cc$")
  set(${sources} ${outputs} PARENT_SCOPE)
endfunction()
