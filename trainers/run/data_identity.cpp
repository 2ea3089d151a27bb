#include "trainers/run/data_identity.h"

#include <algorithm>
#include <filesystem>

#include "trainers/config/config.h"
#include "trainers/config/text_reader.h"
#include "trainers/run/state.pb.h"
#include "weft/core/error.h"
#include "weft/io/files.h"

namespace weft::train {

namespace {

using Source = DataIdentity_Source;
using File = DataIdentity_File;

constexpr size_t kWholeBytes = size_t{4} << 20, kBlockBytes = size_t{16} << 10, kBlocks = 64;

constexpr const char* kFix =
    "put the files back as they were; a new one stays out with data.keep_files=true, or outside of the pattern. A run "
    "on other data needs another folder (--run)";

constexpr const char* kSettingFix =
    "set it as it was; other data begin a run of their own, in another folder (--run) and without --resume";

void add_content(io::Xxh3Stream& hash, const std::string& path) {
  auto file = io::MappedFile::open(path);
  std::string_view bytes = file->bytes();
  if (bytes.size() <= kWholeBytes) return hash.update(bytes);
  for (size_t i = 0; i < kBlocks; ++i)  // evenly, from the first to the last byte
    hash.update(bytes.substr((bytes.size() - kBlockBytes) / (kBlocks - 1) * i, kBlockBytes));
  hash.update(bytes.substr(bytes.size() - kBlockBytes));
}

std::string name_of(const File& file) { return std::filesystem::path(file.path()).filename().string(); }

bool has_same_content(const File& a, const File& b) { return a.bytes() == b.bytes() && a.checksum() == b.checksum(); }

bool are_same_files(const Source& a, const Source& b) {
  return std::equal(a.file().begin(), a.file().end(), b.file().begin(), b.file().end(),
                    [](const File& x, const File& y) { return name_of(x) == name_of(y) && has_same_content(x, y); });
}

// The file of that path, or the same file in another folder.
const File* find(const Source& source, const File& file) {
  auto by = [&](auto&& is_it) {
    auto at = std::find_if(source.file().begin(), source.file().end(), is_it);
    return at == source.file().end() ? nullptr : &*at;
  };
  if (const File* same = by([&](const File& f) { return f.path() == file.path(); })) return same;
  return by([&](const File& f) { return name_of(f) == name_of(file) && has_same_content(f, file); });
}

// Of two sources whose files are not the same.
std::string file_difference(const Source& recorded, const Source& now) {
  for (const File& file : now.file())
    if (const File* before = find(recorded, file); before && !has_same_content(*before, file))
      return str(file.path(), " has changed: ", before->bytes(), " bytes then, ", file.bytes(), " bytes now",
                 before->bytes() == file.bytes() ? ", with another checksum" : "");
  for (const File& file : now.file())
    if (!find(recorded, file)) return str(file.path(), " is new");
  for (const File& file : recorded.file())
    if (!find(now, file)) return str(file.path(), " is missing");
  return "the files come in another order";
}

template <class T>
void require_equal(const std::string& recorded_in, std::string_view what, const T& then, const T& now) {
  WEFT_CHECK(then == now,
             str("the data of this run are not those of ", recorded_in, ": ", what, " was ", then, " and is ", now),
             kSettingFix);
}

void require_same_source(const std::string& in, const Source& recorded, const Source& now) {
  require_equal(in, now.name() + ".tokens", recorded.tokens(), now.tokens());
  require_equal(in, now.name() + ".documents", recorded.documents(), now.documents());
  require_equal(in, now.name() + ".weight", recorded.weight(), now.weight());
}

}  // namespace

void add_files(Source& source, const std::vector<std::string>& paths) {
  for (const std::string& path : paths) {
    File& file = *source.add_file();
    file.set_path(path);
    io::Xxh3Stream hash;
    add_content(hash, path);
    const std::string stem = path.substr(0, path.size() - 3);  // of a pair either name will do
    for (const std::string& other :
         {path.ends_with(".bin") ? stem + "idx" : "", path.ends_with(".idx") ? stem + "bin" : ""})
      if (!other.empty() && io::file_exists(other)) add_content(hash, other);
    file.set_bytes(static_cast<int64_t>(std::filesystem::file_size(path)));
    file.set_checksum(hash.digest());
  }
}

std::vector<std::string> files_of(const DataIdentity& identity, const std::string& name) {
  std::vector<std::string> paths;
  if (const Source* source = find_source(identity, name))
    for (const File& file : source->file()) paths.push_back(file.path());
  return paths;
}

const Source* find_source(const DataIdentity& identity, const std::string& name) {
  for (const Source& source : identity.source())
    if (source.name() == name) return &source;
  return nullptr;
}

void require_same_files(const DataIdentity& recorded, const Source& now, const std::string& recorded_in) {
  const Source* before = find_source(recorded, now.name());
  WEFT_CHECK(before, str("the data of this run are not those of ", recorded_in, ", which has no ", now.name()), kFix);
  WEFT_CHECK(are_same_files(*before, now),
             str("the data of this run are not those of ", recorded_in, ": of ", now.name(), " (", now.pattern(), "), ",
                 file_difference(*before, now)),
             kFix);
}

void require_same_data(const DataIdentity& recorded, const DataIdentity& now, const std::string& recorded_in) {
  require_equal(recorded_in, "the number of sources", recorded.source_size(), now.source_size());
  for (const Source& source : now.source()) {
    require_same_files(recorded, source, recorded_in);
    require_same_source(recorded_in, *find_source(recorded, source.name()), source);
  }
  require_equal(recorded_in, "model.context", recorded.context(), now.context());
  require_equal(recorded_in, "seed", recorded.seed(), now.seed());
  require_equal(recorded_in, "the number of ids", recorded.vocab(), now.vocab());
  require_equal(recorded_in, "data.end_of_text", recorded.end_of_text(), now.end_of_text());
  require_equal(recorded_in, "data.first_token", recorded.has_first_token(), now.has_first_token());
  require_equal(recorded_in, "data.val.fraction", recorded.validation_fraction(), now.validation_fraction());
  require_equal(recorded_in, "the tokenizer's fingerprint", recorded.tokenizer(), now.tokenizer());
}

std::string other_contents(const DataIdentity& a, const DataIdentity& b) {
  if (a.source_size() != b.source_size())
    return str(a.source_size(), " sources in one and ", b.source_size(), " in the other");
  for (int s = 0; s < a.source_size(); ++s) {
    const Source &x = a.source(s), &y = b.source(s);
    if (x.file_size() != y.file_size())
      return str(x.name(), " has ", x.file_size(), " files in one and ", y.file_size(), " in the other");
    for (int f = 0; f < x.file_size(); ++f) {
      const File &in_a = x.file(f), &in_b = y.file(f);
      if (has_same_content(in_a, in_b)) continue;
      if (in_a.bytes() != in_b.bytes())
        return str(in_b.path(), " has ", in_a.bytes(), " bytes in one and ", in_b.bytes(), " in the other");
      return str(in_b.path(), " has ", in_b.bytes(), " bytes in both, and another checksum");
    }
  }
  return {};
}

std::string changed_contents(const DataIdentity& recorded) {
  DataIdentity then, now;
  for (const Source& source : recorded.source()) {
    Source &before = *then.add_source(), &present = *now.add_source();
    for (const File& file : source.file()) {
      if (!io::file_exists(file.path())) continue;
      *before.add_file() = file;
      add_files(present, {file.path()});
    }
  }
  return other_contents(then, now);
}

std::shared_ptr<const DataIdentity> read_data_identity(const std::string& run_folder) {
  const std::string path = run_folder + "/data.txtpb";
  if (!io::file_exists(path)) return nullptr;
  auto identity = std::make_shared<DataIdentity>();
  const std::string fault = config::parse_record(*identity, io::read_file(path));
  WEFT_CHECK(fault.empty(), str(path, ":", fault, ": the list of the run's files cannot be read"),
             "restore it; without it the run goes on with whatever its patterns match");
  return identity;
}

void write_data_identity(const std::string& run_folder, const DataIdentity& identity) {
  io::write_file_atomically(run_folder + "/data.txtpb", config::to_text(identity));
}

}  // namespace weft::train
