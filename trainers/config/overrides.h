// Overrides of config fields on the command line: path=value, path+=value, path={...}, path=[...], path= (clears).
#pragma once

#include <string>

namespace google::protobuf {
class Message;
}

namespace weft::config {

class Origins;

// Applies one override. Values are parsed by the field's type; sizes take k M G and KiB MiB GiB; relative paths are
// relative to `folder`. Setting a member of a oneof clears the others. ConfigError "<argument>: ..." if it does not
// fit.
void apply_override(google::protobuf::Message& message, const std::string& argument, const std::string& folder,
                    Origins* origins);

// An override of a run's config with the relative paths that its value has made absolute; any other one as it is, also one that cannot be
// applied.
std::string with_absolute_paths(const std::string& argument, const std::string& folder);

}  // namespace weft::config
