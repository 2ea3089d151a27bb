# cmake -DSCRIPT=<check> -DROOT=<planted tree> "-DEXPECT=<texts, separated by |>" -P expect_failure.cmake: the check must
# fail and say each of the texts.
execute_process(COMMAND ${CMAKE_COMMAND} -DROOT=${ROOT} -P ${SCRIPT}
  RESULT_VARIABLE status OUTPUT_VARIABLE text ERROR_VARIABLE text)
if(status EQUAL 0)
  message(FATAL_ERROR "accepts a planted error:\n${text}")
endif()
string(REPLACE "|" ";" EXPECT "${EXPECT}")
foreach(expected IN LISTS EXPECT)
  string(FIND "${text}" "${expected}" position)
  if(position EQUAL -1)
    message(FATAL_ERROR "'${expected}' is not in:\n${text}")
  endif()
endforeach()
