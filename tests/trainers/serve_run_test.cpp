// `weft serve RUN` as a process: the same numbers as `weft sample` and `weft eval`, and an end when it is told to.
#include <httplib.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <nlohmann/json.hpp>
#include <thread>

#include "tests/trainers/process.h"
#include "tests/trainers/run_fixture.h"

namespace weft {
namespace {

using nlohmann::json;
using namespace std::chrono_literals;

class ServeRun : public test::RunFixture {};

// The server, from its start to the line that names its port.
class Server {
 public:
  explicit Server(std::vector<std::string> words) {
    int out[2];
    EXPECT_EQ(pipe(out), 0);
    words.insert(words.begin(), "serve");
    words.insert(words.end(), {"--port", "0", "--json"});
    process_ = test::start_weft(words, out[1]);
    close(out[1]);
    std::string text;
    char c;
    while (!json::accept(text) && read(out[0], &c, 1) == 1) text += c;
    close(out[0]);
    EXPECT_TRUE(json::accept(text)) << "no port: " << text;
    if (json::accept(text)) about = json::parse(text);
  }
  ~Server() {
    if (process_ > 0) kill(process_, SIGKILL), waitpid(process_, nullptr, 0);
  }
  int port() const { return about.value("port", 0); }
  json post(const json& body) const {
    httplib::Client client("127.0.0.1", port());
    client.set_read_timeout(60);
    const httplib::Result result = client.Post("/v1/completions", body.dump(), "application/json");
    return result ? json::parse(result->body) : json("no answer");
  }
  // Exit code after the signal, or -1.
  int end(int signal) {
    kill(process_, signal);
    int status = 0;
    waitpid(process_, &status, 0);
    process_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  json about;

 private:
  pid_t process_ = 0;
};

TEST_F(ServeRun, GivesWhatSampleAndEvalGiveAndEndsOnASignal) {
  ASSERT_EQ(test::run_weft(train("a")).exit_code, 0);
  Server server({path("a"), "--max-batch", "3", "--threads", "1", "--device", "cpu"});
  ASSERT_GT(server.port(), 0);
  EXPECT_EQ(server.about["model"], "a");
  EXPECT_EQ(server.about["context"], 32);
  for (const char* temperature : {"0", "0.8"}) {
    const json sampled = json::parse(test::run_weft({"sample", path("a"), "--prompt", "line 7 of", "--tokens", "20",
                                                     "--n", "2", "--temperature", temperature, "--seed", "9", "--json"})
                                         .out);
    const json served = server.post(
        {{"prompt", "line 7 of"}, {"max_tokens", 20}, {"n", 2}, {"temperature", std::stod(temperature)}, {"seed", 9}});
    for (size_t i = 0; i < 2; ++i) EXPECT_EQ(served["choices"][i]["text"], sampled["samples"][i]);
  }
  // A validation text of one window: 32 targets behind 33 characters.
  const std::string window = "line 7919 of a text that repeats ";
  write("v.txt", window);
  const json evaluated =
      json::parse(test::run_weft({"eval", path("a"), "data.val.path=" + path("v.txt"), "--json"}).out);
  ASSERT_EQ(evaluated["validation"][0]["targets"], 32);
  const json first =
      server.post({{"prompt", window.substr(0, 32)}, {"max_tokens", 0}, {"echo", true}, {"logprobs", 0}});
  double sum = 0;
  for (size_t t = 1; t < 32; ++t) sum += first["choices"][0]["logprobs"]["token_logprobs"][t].get<double>();
  // The last target is what comes behind the whole context.
  const json last =
      server.post({{"prompt", window.substr(0, 32)}, {"max_tokens", 1}, {"temperature", 0}, {"logprobs", 20}});
  const json& top = last["choices"][0]["logprobs"]["top_logprobs"][0];
  ASSERT_TRUE(top.contains(" ")) << top;
  sum += top[" "].get<double>();
  EXPECT_NEAR(-sum / 32, evaluated["validation"][0]["loss"].get<double>(), 1e-5);

  const auto taken = test::run_weft({"serve", path("a"), "--port", std::to_string(server.port())});
  EXPECT_EQ(taken.exit_code, 1);
  EXPECT_NE(taken.err.find("is in use"), std::string::npos) << taken.err;
  EXPECT_EQ(test::run_weft({"serve", path("a"), "--port", "70000"}).exit_code, 2);
  EXPECT_EQ(test::run_weft({"serve", path("nothing")}).exit_code, 2);
  EXPECT_EQ(test::run_weft({"serve", path("a"), "--device", "tpu"}).exit_code, 2);

  std::thread busy([&] { server.post({{"prompt", std::vector<std::string>(200, "line")}, {"max_tokens", 28}}); });
  std::this_thread::sleep_for(100ms);
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(server.end(SIGTERM), 0);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 10s);
  busy.join();
}

// An imported model without a tokenizer has ids for texts.
TEST_F(ServeRun, ServesAnImportedFolder) {
  write("llama.txtpb", R"(
model { dim: 16 layers: 1 context: 32 norm { rms {} } mixer { softmax { heads: 2 } } ffn { swiglu { hidden: 32 } } }
data { tokenizer { bytes {} } train { path: "text.txt" } val { fraction: 0.1 } }
optim { group { match: "*" adamw { lr: 3e-3 } } }
train { tokens: 512 tokens_per_step: 128 micro_batch: 2 threads: 1 }
)");
  ASSERT_EQ(test::run_weft({"train", path("llama.txtpb"), "--run", path("a")}).exit_code, 0);
  ASSERT_EQ(test::run_weft({"export", path("a"), "--out", path("hf")}).exit_code, 0);
  ASSERT_EQ(test::run_weft({"import", path("hf"), "--out", path("b")}).exit_code, 0);
  Server server({path("b"), "--threads", "1"});
  ASSERT_GT(server.port(), 0);
  const json sampled = json::parse(
      test::run_weft({"sample", path("b"), "--prompt", "108 105 110", "--tokens", "9", "--temperature", "0", "--json"})
          .out);
  const json request{{"max_tokens", 9}, {"temperature", 0}};
  for (const json& prompt : {json("108 105 110"), json{108, 105, 110}}) {
    json with_prompt = request;
    with_prompt["prompt"] = prompt;
    EXPECT_EQ(server.post(with_prompt)["choices"][0]["text"], sampled["samples"][0]);
  }
  EXPECT_EQ(server.post({{"prompt", "line"}})["error"]["param"], "prompt");
  EXPECT_EQ(server.end(SIGINT), 0);
}

TEST_F(ServeRun, ReadsFurtherThanTheTrainingContextWhenAsked) {
  ASSERT_EQ(test::run_weft(train("a", {"eval.every=0"})).exit_code, 0);
  Server server({path("a") + "/", "--context", "64"});
  ASSERT_GT(server.port(), 0);
  EXPECT_EQ(server.about["model"], "a");
  EXPECT_EQ(server.post({{"prompt", "line"}, {"max_tokens", 61}})["usage"]["completion_tokens"], 61);
  EXPECT_EQ(server.post({{"prompt", "line"}, {"max_tokens", 62}})["error"]["param"], "max_tokens");
  EXPECT_EQ(server.end(SIGINT), 0);
}

}  // namespace
}  // namespace weft
