// Texts that Weft writes beside a run, cut or damaged: one error with the file, and nothing printed by the parser itself.
#include "tests/support/errors.h"
#include "tests/trainers/run_fixture.h"
#include "trainers/config/config.h"
#include "trainers/run/data_identity.h"
#include "trainers/run/facts.h"
#include "trainers/run/start_model.h"
#include "trainers/run/state.pb.h"
#include "weft/core/error.h"

namespace weft::train {
namespace {

using test::error_of;

class Records : public test::RunFixture {
 protected:
  // Of what `read` prints; protobuf writes to stderr where nobody collects its errors.
  template <class F>
  static std::string printed(F&& read) {
    ::testing::internal::CaptureStderr();
    read();
    return ::testing::internal::GetCapturedStderr();
  }
};

const std::vector<std::string> kDamages{
    "source {", "source { name: \"a\" file {", "checkpoint: ", "version: \"1", "seed: x", "nonsense", "}", "\x01\x02"};

TEST_F(Records, DamagedTextsAreOneError) {
  config::Loaded begun;
  begun.experiment.mutable_start()->set_from(path("base"));
  for (const std::string& text : kDamages) {
    SCOPED_TRACE(text);
    write("data.txtpb", text), write("start.txtpb", text);
    EXPECT_EQ(printed([&] {
                EXPECT_EQ(error_of([&] { read_data_identity(path("")); },
                                   {"data.txtpb:1:", "the list of the run's files cannot be read", "restore it"}),
                          "");
                EXPECT_EQ(error_of([&] { recorded_start(begun, path("")); },
                                   {"start.txtpb:1:", "began as cannot be read", "restore the file"}),
                          "");
                run_facts(config::Experiment(), text);
              }),
              "");
  }
}

// What a process that was killed, or a full disk, leaves of a whole one.
TEST_F(Records, ACutListOfFilesIsOneError) {
  DataIdentity identity;
  auto& source = *identity.add_source();
  source.set_name("data.train[0]");
  source.add_file()->set_path("a.txt");
  write_data_identity(path(""), identity);
  const std::string whole = io::read_file(path("data.txtpb"));
  ASSERT_TRUE(read_data_identity(path("")));
  const size_t last = whole.find_last_of('}');
  int num_refused = 0;
  for (size_t bytes = 1; bytes <= last; ++bytes) {
    write("data.txtpb", whole.substr(0, bytes));
    EXPECT_EQ(printed([&] {
                try {
                  read_data_identity(path(""));
                } catch (const Error& e) {
                  ++num_refused;
                  EXPECT_NE(std::string(e.what()).find("data.txtpb:"), std::string::npos) << e.what();
                }
              }),
              "");
  }
  EXPECT_EQ(num_refused, static_cast<int>(last));
}

}  // namespace
}  // namespace weft::train
