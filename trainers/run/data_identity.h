// Which files a run reads, and whether they are still the same when it goes on: another file, another order or another content
// would give it other samples without a word.
#pragma once

#include <memory>
#include <string>
#include <vector>

namespace weft::train {

class DataIdentity;         // trainers/run/state.proto
class DataIdentity_Source;  // one source in it

// Of a source's files, in their order. Reads at most 4 MiB of each.
void add_files(DataIdentity_Source& source, const std::vector<std::string>& paths);

std::vector<std::string> files_of(const DataIdentity& identity, const std::string& name);  // of a source; empty without

const DataIdentity_Source* find_source(const DataIdentity& identity, const std::string& name);  // null if there is none

// The part of require_same_data() that needs no look into the files of `now`; for a source that `recorded` has too.
void require_same_files(const DataIdentity& recorded, const DataIdentity_Source& now, const std::string& recorded_in);

// Error that names the first file that is new, missing or changed, or the first setting that differs. `recorded_in` says where
// `recorded` comes from. A source whose files have all moved to another folder is the same.
void require_same_data(const DataIdentity& recorded, const DataIdentity& now, const std::string& recorded_in);

// "a.txt has 12 bytes in one and 14 in the other", or "" where the files of both, by their contents, are the same in the same order.
std::string other_contents(const DataIdentity& a, const DataIdentity& b);

// The same of `recorded` and its files as they are at present; those that are not there any more are not looked at.
std::string changed_contents(const DataIdentity& recorded);

// data.txtpb of a run folder; null if it has none.
std::shared_ptr<const DataIdentity> read_data_identity(const std::string& run_folder);
void write_data_identity(const std::string& run_folder, const DataIdentity& identity);

}  // namespace weft::train
