// A server on a free port, of a tiny model, and a client of it.
#pragma once

#include <gtest/gtest.h>
#include <httplib.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "tests/trainers/serve_support.h"

namespace weft::serve_test {

class HttpFixture : public ::testing::Test {
 protected:
  void SetUp() override {
    set_num_threads(1);
    begin({.max_batch = 4, .max_wait_s = 0.002}, {.timeout_s = 1});
  }
  void TearDown() override {
    engine_.reset();
    server_.reset();
  }

  void begin(const serve::BatcherOptions& batches, const serve::HttpOptions& http) {
    TearDown();
    model_ = std::make_unique<LanguageModel>(tiny(hybrid()), Rng(3));
    served_ = served(*model_);
    engine_ = std::make_unique<Engine>(*model_, served_, batches);
    server_ = std::make_unique<serve::HttpServer>(http, serve::api_routes(served_, engine_->batcher));
    server_->start();
  }
  httplib::Client client() const {
    httplib::Client client("127.0.0.1", server_->port());
    client.set_read_timeout(20);
    return client;
  }
  nlohmann::json post(const std::string& path, const nlohmann::json& body, int status = 200) const {
    const httplib::Result result = client().Post(path, body.dump(), "application/json");
    if (!result) {
      ADD_FAILURE() << path << ": " << httplib::to_string(result.error());
      return {};
    }
    EXPECT_EQ(result->status, status) << result->body;
    return nlohmann::json::parse(result->body);
  }
  nlohmann::json complete(const nlohmann::json& body, int status = 200) const {
    return post("/v1/completions", body, status);
  }
  nlohmann::json get(const std::string& path, int status = 200) const {
    const httplib::Result result = client().Get(path);
    if (!result) {
      ADD_FAILURE() << path << ": " << httplib::to_string(result.error());
      return {};
    }
    EXPECT_EQ(result->status, status) << result->body;
    return nlohmann::json::parse(result->body);
  }

  std::unique_ptr<LanguageModel> model_;
  serve::ServedModel served_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<serve::HttpServer> server_;
};

}  // namespace weft::serve_test
