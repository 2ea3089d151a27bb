#include "trainers/run_data.h"

#include <algorithm>

#include "trainers/check.h"
#include "weft/core/error.h"
#include "weft/data/shards.h"
#include "weft/data/tokenize.h"
#include "weft/io/files.h"

namespace weft::train {

namespace {

using config::Loaded;

bool is_shard(const std::string& path) { return path.ends_with(".bin") || path.ends_with(".idx"); }

// The alphabet of the training texts, kept in the run folder so that a resumed run has the same ids.
data::Alphabet alphabet_of(const Loaded& config, const std::string& folder) {
  std::string file = folder + "/data/alphabet.txt";
  if (io::file_exists(file)) return data::load_alphabet(file);
  std::vector<std::string> files;
  const auto& sources = config.experiment.data();
  for (int i = 0; i < sources.train_size(); ++i)
    for (const std::string& path : data::expand_path(sources.train(i).path())) {
      if (is_shard(path))
        config::refuse(config, str("data.train[", i, "].path"), str("is ", path, ", ids without text"),
                       "a characters tokenizer wants text");
      files.push_back(path);
    }
  data::Alphabet alphabet = data::alphabet_of_files(files);
  io::make_folders(folder + "/data");
  data::save_alphabet(file, alphabet);
  return alphabet;
}

std::shared_ptr<const data::Tokenizer> make_tokenizer(const Loaded& config, const std::string& folder) {
  const config::Tokenizer& t = config.experiment.data().tokenizer();
  if (t.has_gpt2()) return data::make_gpt2_tokenizer(t.gpt2().vocab(), t.gpt2().merges());
  if (t.has_characters()) return data::make_character_tokenizer(alphabet_of(config, folder));
  return data::make_byte_tokenizer();
}

// All files of a path as one stream; texts become shards in the run folder.
data::Dataset open_source(const std::string& pattern, const std::string& name, const data::Tokenizer& tokenizer,
                          const std::string& folder, const PrepareOptions& prepare) {
  std::vector<data::Shard> shards;
  const std::string output = folder + "/" + name;
  if (auto done = prepare.keeps_shards ? data::tokenized_before(output) : std::nullopt) {
    for (const std::string& shard : done->shards) shards.push_back(data::Shard::open(shard));
    return data::Dataset(std::move(shards));
  }
  std::vector<std::string> texts;
  for (const std::string& path : data::expand_path(pattern)) {
    if (is_shard(path))
      shards.push_back(data::Shard::open(path, {.raw_width = data::id_width(tokenizer.vocab_size())}));
    else texts.push_back(path);
  }
  WEFT_CHECK(shards.empty() || texts.empty(), str("data: ", pattern, " names shards and texts"),
             "give them two sources");
  if (!texts.empty()) {
    io::make_folders(folder);
    data::TokenizeOptions options{.output = output};
    if (prepare.progress)
      options.progress = [&](int64_t done, int64_t total) { prepare.progress(pattern, done, total); };
    for (const std::string& shard : data::tokenize_files(texts, tokenizer, options).shards)
      shards.push_back(data::Shard::open(shard));
  }
  return data::Dataset(std::move(shards));
}

data::DocumentRule document_rule(const RunData& run, const data::Dataset& dataset) {
  if (dataset.has_documents())  // a single document needs no walls
    return dataset.next_document(0) < dataset.num_tokens() ? data::DocumentRule::index : data::DocumentRule::none;
  if (!run.end_of_text) return data::DocumentRule::none;
  int32_t first = -1;  // shards in the style of llm.c put the id before each document
  dataset.read(0, {&first, 1}, run.tokenizer->vocab_size());
  return first == *run.end_of_text ? data::DocumentRule::begins_with_id : data::DocumentRule::ends_with_id;
}

// One rule for all data sets of a run; a single document goes with every rule that finds the others' documents by itself.
data::DocumentRule document_rule(const Loaded& config, const RunData& run,
                                 const std::vector<data::MixtureSource>& sources) {
  using data::DocumentRule;
  if (!config.experiment.data().document_mask()) return DocumentRule::none;
  std::vector<data::Dataset> datasets;
  for (const data::MixtureSource& source : sources) datasets.push_back(source.dataset);
  if (run.validation) datasets.push_back(*run.validation);
  DocumentRule rule = DocumentRule::none;
  bool all_have_index = true;
  for (const data::Dataset& dataset : datasets) {
    DocumentRule own = document_rule(run, dataset);
    all_have_index &= dataset.has_documents();
    if (own == DocumentRule::none || own == rule) continue;
    WEFT_CHECK(rule == DocumentRule::none, "data: the sources mark their documents in different ways",
               "tokenise them alike, or set data.document_mask=false");
    rule = own;
  }
  WEFT_CHECK(rule != DocumentRule::index || all_have_index, "data: some sources know their documents and others do not",
             "tokenise them alike, or set data.document_mask=false");
  return rule;
}

}  // namespace

data::ValidationWindows RunData::windows(int64_t context) const {
  WEFT_CHECK(validation, "validation: the config names no validation data", "set data.val");
  return data::ValidationWindows(*validation, {.context = context,
                                               .vocab = tokenizer->vocab_size(),
                                               .documents = documents,
                                               .end_of_text = end_of_text.value_or(-1),
                                               .first_token = first_token.value_or(-1)});
}

RunData prepare_data(const Loaded& config, const std::string& run_folder, const PrepareOptions& options) {
  MemoryTag tag("data");
  const config::Data& d = config.experiment.data();
  RunData run;
  std::string shards = options.shards.empty() ? run_folder + "/data" : options.shards;
  run.tokenizer = make_tokenizer(config, run_folder);
  int64_t vocab = run.tokenizer->vocab_size();
  for (int64_t id = 0; id < vocab; ++id)
    run.byte_lengths.push_back(run.tokenizer->byte_length(static_cast<int32_t>(id)));
  run.end_of_text =
      d.has_end_of_text() ? std::optional(static_cast<int32_t>(d.end_of_text())) : run.tokenizer->end_of_text();

  if (d.first_token()) run.first_token = static_cast<int32_t>(vocab);

  std::vector<data::MixtureSource> sources;
  for (int i = 0; i < d.train_size(); ++i)
    sources.push_back(
        {open_source(d.train(i).path(), str("train-", i), *run.tokenizer, shards, options), d.train(i).weight()});
  if (d.val().has_fraction()) {
    WEFT_CHECK(sources.size() == 1, str("data.val.fraction with ", sources.size(), " training sources"),
               "name a validation file with data.val.path");
    auto [head, tail] = data::split_tail(sources[0].dataset, d.val().fraction());
    sources[0].dataset = head;
    run.validation = tail;
  } else if (d.val().has_path()) {
    run.validation = open_source(d.val().path(), "val", *run.tokenizer, shards, options);
  }
  if (run.validation && d.val().has_tokens() && d.val().tokens() < run.validation->num_tokens())
    run.validation = run.validation->slice(0, d.val().tokens());
  run.train = sources[0].dataset;
  run.documents = document_rule(config, run, sources);
  data::RowOptions rows{.context = config.experiment.model().context(),
                        .vocab = vocab,
                        .documents = run.documents,
                        .end_of_text = run.end_of_text.value_or(-1),
                        .first_token = run.first_token.value_or(-1)};
  run.loader =
      std::make_unique<data::Loader>(std::move(sources), rows, static_cast<uint64_t>(config.experiment.seed()));
  return run;
}

}  // namespace weft::train
