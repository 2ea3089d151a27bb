# weft_refuse_forgotten(FOLDER LIST sources...): stops if a .cpp file below FOLDER is not among the sources that the file LIST names. It
# would be missing when programs are linked, which says nothing of the list.
function(weft_refuse_forgotten folder list)
  set(depends CONFIGURE_DEPENDS)  # a new file is seen by the next build
  if(CMAKE_SCRIPT_MODE_FILE)
    set(depends "")
  endif()
  file(GLOB_RECURSE files RELATIVE ${folder} ${depends} ${folder}/*.cpp)
  foreach(file IN LISTS files)
    if(NOT file IN_LIST ARGN)
      message(FATAL_ERROR "${folder}/${file} is in no list of sources: add ${file} to ${list}")
    endif()
  endforeach()
endfunction()
