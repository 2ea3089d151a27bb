// What is answered to a request that cannot be served: an HTTP status, and the object `error` of the OpenAI interface.
#pragma once

#include <exception>
#include <string>
#include <utility>

namespace weft::serve {

struct RequestError : std::exception {
  RequestError(int http_status, std::string text, std::string field = {})
      : status(http_status), message(std::move(text)), param(std::move(field)) {}
  const char* what() const noexcept override { return message.c_str(); }

  int status;
  std::string message;  // what is wrong, and what to do about it
  std::string param;    // the field; empty: none
};

}  // namespace weft::serve
