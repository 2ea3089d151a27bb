#include "trainers/run/data.h"

#include <algorithm>
#include <set>

#include "trainers/config/check.h"
#include "trainers/config/translate.h"
#include "trainers/run/facts.h"
#include "trainers/run/state.pb.h"
#include "weft/core/error.h"
#include "weft/data/shards.h"
#include "weft/data/tokenize.h"
#include "weft/io/files.h"

namespace weft::train {

namespace {

using config::Loaded;

bool is_shard(const std::string& path) { return path.ends_with(".bin") || path.ends_with(".idx"); }

// What an earlier start made of other texts, before there was a run, binds nobody.
bool is_first_start(const PrepareOptions& options) { return options.records && !options.is_continued; }

// The alphabet of the training texts, kept in the run folder so that a resumed run has the same ids.
data::Alphabet alphabet_of(const Loaded& config, const std::string& folder, bool is_new) {
  std::string file = folder + "/data/alphabet.txt";
  if (!is_new && io::file_exists(file)) return data::load_alphabet(file);
  std::set<char32_t> all;
  const auto& sources = config.experiment.data();
  for (int i = 0; i < sources.train_size(); ++i) {
    std::vector<std::string> files;
    for (const std::string& path : data::expand_path(sources.train(i).path())) {
      if (is_shard(path))
        config::refuse(config, str("data.train[", i, "].path"), str("is ", path, ", ids without text."),
                       "Give texts to a characters tokenizer, or use the tokenizer that made the ids.");
      files.push_back(path);
    }
    data::Alphabet own = data::alphabet_of_files(files, {.field = sources.train(i).field()});
    all.insert(own.begin(), own.end());
  }
  data::Alphabet alphabet(all.begin(), all.end());
  io::make_folders(folder + "/data");
  data::save_alphabet(file, alphabet);
  return alphabet;
}

std::shared_ptr<const data::Tokenizer> make_tokenizer(const Loaded& config, const std::string& folder, bool is_new) {
  const config::Tokenizer& t = config.experiment.data().tokenizer();
  if (t.has_bpe()) return data::make_bpe_tokenizer(t.bpe().file());
  if (t.has_ids()) return data::make_id_tokenizer(config.experiment.model().vocab());
  if (t.has_gpt2()) return data::make_gpt2_tokenizer(t.gpt2().vocab(), t.gpt2().merges());
  if (t.has_characters()) return data::make_character_tokenizer(alphabet_of(config, folder, is_new));
  return data::make_byte_tokenizer();
}

// Files of a pattern, those of an index beside its data left out: a pair is opened by either name.
std::vector<std::string> files_of(const std::string& pattern) {
  std::vector<std::string> files = data::expand_path(pattern);
  std::erase_if(files, [&](const std::string& path) {
    return path.ends_with(".idx") &&
           std::find(files.begin(), files.end(), path.substr(0, path.size() - 3) + "bin") != files.end();
  });
  return files;
}

// One source of a run: its files as one stream.
struct Opened {
  data::Dataset dataset;
  data::DocumentRule documents;
};

// What the sources of a run have in common while they are opened.
struct Opening {
  const config::Data& d;
  const RunData& run;
  const std::string& shards;  // where those of texts go
  const PrepareOptions& options;
  const DataIdentity* recorded;  // of the run that is read or goes on; may be null
  bool keeps_files;              // takes the files recorded and not what the patterns match
  const std::string& recorded_in;
  DataIdentity& identity;

  data::DocumentRule rule_of(const data::Dataset& dataset, bool is_tokenised) const;
  data::Dataset tokenise(const std::vector<std::string>& texts, const std::string& pattern, const std::string& field,
                         const std::string& output) const;
  std::vector<std::string> files(const std::string& name, const std::string& pattern) const;
  data::Dataset open_files(const std::vector<std::string>& paths, const std::string& pattern, const std::string& field,
                           const std::string& output) const;
  // `field`: of JSONL.
  Opened open(const std::string& name, const std::string& pattern, const std::string& field, const std::string& output,
              double weight) const;
};

data::DocumentRule Opening::rule_of(const data::Dataset& dataset, bool is_tokenised) const {
  using data::DocumentRule;
  if (!d.document_mask()) return DocumentRule::none;
  DocumentRule rule = data::document_rule_of(dataset, run.end_of_text, run.tokenizer->vocab_size());
  if (rule != DocumentRule::begins_with_id && rule != DocumentRule::ends_with_id) return rule;
  static_assert(config::EndOfTextPlace::Value_ARRAYSIZE == 4, "another place is translated here");
  if (d.end_of_text_at() == config::EndOfTextPlace::begin) return DocumentRule::begins_with_id;
  if (d.end_of_text_at() == config::EndOfTextPlace::end) return DocumentRule::ends_with_id;
  return is_tokenised ? DocumentRule::ends_with_id : rule;
}

// Texts become shards in the run folder.
data::Dataset Opening::tokenise(const std::vector<std::string>& texts, const std::string& pattern,
                                const std::string& field, const std::string& output) const {
  io::make_folders(shards);
  data::TokenizeOptions how{.output = output, .text = {.field = field}, .waits = true};
  if (options.progress) how.progress = [&](int64_t done, int64_t total) { options.progress(pattern, done, total); };
  std::vector<data::Shard> made;
  for (const std::string& shard : data::tokenize_files(texts, *run.tokenizer, how).shards)
    made.push_back(data::Shard::open(shard));
  return data::Dataset(std::move(made));
}

std::vector<std::string> Opening::files(const std::string& name, const std::string& pattern) const {
  if (keeps_files && recorded && find_source(*recorded, name)) return files_of(*recorded, name);
  return files_of(pattern);
}

data::Dataset Opening::open_files(const std::vector<std::string>& paths, const std::string& pattern,
                                  const std::string& field, const std::string& output) const {
  std::vector<data::Shard> found;
  std::vector<std::string> texts;
  for (const std::string& path : paths) {
    if (is_shard(path))
      found.push_back(data::Shard::open(path, {.raw_width = data::id_width(run.tokenizer->vocab_size())}));
    else texts.push_back(path);
  }
  WEFT_CHECK(found.empty() || texts.empty(),
             str("data: ", pattern, " names shards and texts, such as ", found.empty() ? "" : found[0].path(), " and ",
                 texts.empty() ? "" : texts[0]),
             "give them two sources");
  return texts.empty() ? data::Dataset(std::move(found)) : tokenise(texts, pattern, field, output);
}

Opened Opening::open(const std::string& name, const std::string& pattern, const std::string& field,
                     const std::string& output, double weight) const {
  std::vector<std::string> paths;
  DataIdentity_Source* source = nullptr;
  if (options.records) {
    paths = files(name, pattern);
    source = identity.add_source();
    source->set_name(name);
    source->set_pattern(pattern);
    source->set_weight(weight);
    add_files(*source, paths);
    if (recorded) require_same_files(*recorded, *source, recorded_in);
  }
  // Texts that are still the same need no look at the times of their files.
  const bool is_known = options.keeps_shards || (recorded && options.records);
  auto done = is_known ? data::tokenized_before(output) : std::nullopt;
  if (!done && paths.empty()) paths = files(name, pattern);
  const bool is_tokenised = done || !is_shard(paths.front());
  data::Dataset dataset = open_files(done ? done->shards : paths, pattern, field, output);
  data::DocumentRule documents = rule_of(dataset, is_tokenised);
  if (source) {
    source->set_tokens(dataset.num_tokens());
    source->set_documents(std::string(to_string(documents)));
  }
  return {dataset, documents};
}

// A row is context + 1 tokens, and the first of a validation predicts nothing.
void check_lengths(const Loaded& config, const std::vector<data::MixtureSource>& sources, const RunData& run) {
  const config::Data& d = config.experiment.data();
  const int64_t context = config.experiment.model().context();
  for (int i = 0; i < d.train_size(); ++i) {
    const int64_t tokens = sources[static_cast<size_t>(i)].dataset.num_tokens();
    if (tokens > context) continue;
    std::string kept = d.val().has_fraction()
                           ? str(" beside the part for validation (data.val.fraction=", d.val().fraction(), ")")
                           : "";
    config::refuse(config, str("data.train[", i, "].path"),
                   str("is ", d.train(i).path(), ", which gives ", tokens, " tokens", kept, "; a row of model.context ",
                       context, " needs ", context + 1, "."),
                   str("Give more text, or at most model.context=", std::max<int64_t>(tokens - 1, 1), "."));
  }
  if (!run.validation || run.validation->num_tokens() > 1) return;
  config::refuse(config, d.val().has_path() ? "data.val.path" : "data.val.fraction",
                 str("gives ", run.validation->num_tokens(), " token to validate on, which has nothing to predict",
                     d.val().has_path() ? ": " + d.val().path() : "", "."),
                 "Give more text.");
}

void open_sources(const Opening& opening, RunData& run, std::vector<data::MixtureSource>& sources) {
  const config::Data& d = opening.d;
  auto output = [&](const std::string& name) { return opening.shards + "/" + name; };
  for (int i = 0; i < d.train_size(); ++i) {
    Opened source = opening.open(str("data.train[", i, "]"), d.train(i).path(), d.train(i).field(),
                                 output(str("train-", i)), d.train(i).weight());
    sources.push_back({source.dataset, d.train(i).weight(), source.documents});
  }
  if (d.val().has_fraction()) {
    WEFT_CHECK(sources.size() == 1, str("data.val.fraction with ", sources.size(), " training sources"),
               "name a validation file with data.val.path");
    auto [head, tail] = data::split_tail(sources[0].dataset, d.val().fraction());
    sources[0].dataset = head;
    run.validation = tail;
    run.validation_documents = *sources[0].documents;
  } else if (d.val().has_path()) {
    Opened source = opening.open("data.val", d.val().path(), d.val().field(), output("val"), 0);
    run.validation = source.dataset;
    run.validation_documents = source.documents;
  }
  if (run.validation && d.val().has_half()) {
    const int64_t all = run.validation->num_tokens(), middle = all / 2;
    run.validation = d.val().half() == 1 ? run.validation->slice(0, middle) : run.validation->slice(middle, all);
  }
  if (run.validation && d.val().has_tokens() && d.val().tokens() < run.validation->num_tokens())
    run.validation = run.validation->slice(0, d.val().tokens());
  for (const data::MixtureSource& source : sources) run.training_documents.push_back(*source.documents);
}

// The scan of so many ids is waited for before the first step; a larger one goes on beside the training.
constexpr int64_t kWaitedTokens = int64_t{1} << 29;

// An id that the model does not have would end the run when its row comes, perhaps after hours.
std::unique_ptr<data::IdScan> scan_of(const RunData& run, const std::vector<data::MixtureSource>& sources) {
  std::vector<data::Shard> shards;
  auto add = [&](const data::Dataset& dataset) {
    shards.insert(shards.end(), dataset.shards().begin(), dataset.shards().end());
  };
  for (const data::MixtureSource& source : sources) add(source.dataset);
  const bool is_tail = run.validation && sources.size() == 1 &&
                       run.validation->shards().data() == sources[0].dataset.shards().data();  // of the training data
  if (run.validation && !is_tail) add(*run.validation);
  int64_t tokens = 0;
  for (const data::Shard& shard : shards) tokens += shard.num_tokens();
  auto scan = std::make_unique<data::IdScan>(std::move(shards), run.tokenizer->vocab_size());
  if (tokens <= kWaitedTokens) scan->wait();
  return scan;
}

// data.txtpb of the run that goes on in `folder`, if its files bind this one.
std::shared_ptr<const DataIdentity> recorded_data(const config::Data& d, const std::string& folder,
                                                  const PrepareOptions& options) {
  const bool looks = options.keeps_shards || (options.records && options.is_continued);
  auto recorded = looks ? read_data_identity(folder) : nullptr;
  WEFT_CHECK(!d.keep_files() || recorded || !options.records,
             str("data.keep_files=true, and ", folder, " has no list of the files of a run"),
             "leave it out where a run begins");
  return recorded;
}

}  // namespace

bool RunData::keeps_documents_apart() const {
  auto is_apart = [](data::DocumentRule rule) { return rule != data::DocumentRule::none; };
  return is_apart(validation_documents) || std::any_of(training_documents.begin(), training_documents.end(), is_apart);
}

std::string RunData::documents_text() const {
  auto text = [&](data::DocumentRule rule) {
    switch (rule) {
      case data::DocumentRule::none: return std::string("one document or not told apart");
      case data::DocumentRule::index: return std::string("by their index");
      case data::DocumentRule::begins_with_id: return str("begin with id ", end_of_text.value_or(-1));
      case data::DocumentRule::ends_with_id: return str("end with id ", end_of_text.value_or(-1));
    }
    return std::string();
  };
  std::string out;
  for (size_t i = 0; i < training_documents.size(); ++i)
    out += str(i ? ", " : "", "data.train[", i, "] ", text(training_documents[i]));
  return validation ? str(out, ", validation ", text(validation_documents)) : out;
}

std::string RunData::text() const {
  if (task)
    return str("task ", task->name(), " of ", task->vocab(), " ids, ", test_rows,
               " rows of validation, which are never trained on");
  return str(tokenizer->name(), " tokenizer, ", train->num_tokens(), " training tokens, ",
             validation ? validation->num_tokens() : 0, " validation tokens; documents: ", documents_text());
}

data::SampleSource RunData::samples() const {
  if (task) return task->samples(data::Split::train);
  return [this](int64_t first, int64_t count) { return loader->batch(first, count); };
}

data::ValidationWindows RunData::windows(int64_t context) const {
  if (task) {
    auto samples = data::RecallTask(task->options(), context, 0).samples(data::Split::test);
    return data::ValidationWindows(
        [samples, from = test_from](int64_t first, int64_t count) { return samples(from + first, count); }, test_rows);
  }
  WEFT_CHECK(validation, "validation: the config names no validation data", "set data.val");
  return data::ValidationWindows(*validation, {.context = context,
                                               .vocab = tokenizer->vocab_size(),
                                               .documents = validation_documents,
                                               .end_of_text = end_of_text.value_or(-1),
                                               .first_token = first_token.value_or(-1)});
}

namespace {

// A task needs no files. Its validation data are test rows, whose first ids are also what samples continue.
RunData prepare_task(const Loaded& config, const std::string& run_folder, const PrepareOptions& options) {
  const config::Experiment& e = config.experiment;
  RunData run;
  auto task = std::make_shared<data::RecallTask>(recall_options(e.data().task()), e.model().context(),
                                                 static_cast<uint64_t>(e.seed()));
  run.task = task;
  run.test_rows = e.data().task().test_rows();
  run.test_from = e.data().task().test_from();
  run.tokenizer = data::make_id_tokenizer(task->vocab());
  run.byte_lengths.assign(static_cast<size_t>(task->vocab()), 0);
  run.validation = data::Dataset(run.windows(task->context()).batch(0, run.test_rows).tokens.to_vector<int32_t>());
  if (!options.records) return run;
  auto identity = std::make_shared<DataIdentity>();
  DataIdentity_Source& source = *identity->add_source();
  source.set_name("data.task");
  source.set_pattern(brief(e.data().task()));
  identity->set_context(task->context());
  identity->set_seed(static_cast<uint64_t>(e.seed()));
  identity->set_vocab(task->vocab());
  identity->set_end_of_text(-1);
  identity->set_tokenizer(run.tokenizer->fingerprint());
  auto recorded = recorded_data(e.data(), run_folder, options);
  if (recorded) require_same_data(*recorded, *identity, run_folder + "/data.txtpb");
  else write_data_identity(run_folder, *identity);
  run.identity = identity;
  run.scan = scan_of(run, {});
  return run;
}

}  // namespace

RunData prepare_data(const Loaded& config, const std::string& run_folder, const PrepareOptions& options) {
  MemoryTag tag("data");
  const config::Data& d = config.experiment.data();
  if (d.has_task()) return prepare_task(config, run_folder, options);
  RunData run;
  std::string shards = options.shards.empty() ? run_folder + "/data" : options.shards;
  run.tokenizer = make_tokenizer(config, run_folder, is_first_start(options));
  int64_t vocab = run.tokenizer->vocab_size();
  if (is_first_start(options) || (!options.shards.empty() && config::is_overridden(config, "data.end_of_text")))
    config::check_end_of_text(config, run.tokenizer->name(), vocab);
  for (int64_t id = 0; id < vocab; ++id)
    run.byte_lengths.push_back(run.tokenizer->byte_length(static_cast<int32_t>(id)));
  run.end_of_text =
      d.has_end_of_text() ? std::optional(static_cast<int32_t>(d.end_of_text())) : run.tokenizer->end_of_text();

  if (d.first_token()) run.first_token = static_cast<int32_t>(vocab);

  auto recorded = recorded_data(d, run_folder, options);
  auto identity = std::make_shared<DataIdentity>();
  std::vector<data::MixtureSource> sources;
  const std::string recorded_in = run_folder + "/data.txtpb";
  open_sources({.d = d,
                .run = run,
                .shards = shards,
                .options = options,
                .recorded = recorded.get(),
                .keeps_files = options.keeps_shards || d.keep_files(),
                .recorded_in = recorded_in,
                .identity = *identity},
               run, sources);
  check_lengths(config, sources, run);
  if (options.records) {
    identity->set_context(config.experiment.model().context());
    identity->set_seed(static_cast<uint64_t>(config.experiment.seed()));
    identity->set_vocab(vocab);
    identity->set_end_of_text(run.end_of_text.value_or(-1));
    identity->set_has_first_token(d.first_token());
    identity->set_tokenizer(run.tokenizer->fingerprint());
    identity->set_validation_fraction(d.val().fraction());
    if (recorded) require_same_data(*recorded, *identity, recorded_in);
    else write_data_identity(run_folder, *identity);
    run.identity = identity;
    run.scan = scan_of(run, sources);
  }
  if (sources.empty()) return run;  // data.weights_only
  run.train = sources[0].dataset;
  data::RowOptions rows{.context = config.experiment.model().context(),
                        .vocab = vocab,
                        .end_of_text = run.end_of_text.value_or(-1),
                        .first_token = run.first_token.value_or(-1)};
  run.loader =
      std::make_unique<data::Loader>(std::move(sources), rows, static_cast<uint64_t>(config.experiment.seed()));
  return run;
}

}  // namespace weft::train
