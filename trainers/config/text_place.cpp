#include "trainers/config/text_place.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <map>
#include <vector>

#include "trainers/config/schema.h"
#include "weft/core/error.h"

namespace weft::config {

namespace {

namespace pb = google::protobuf;

class IgnoreErrors : public pb::io::ErrorCollector {
  void AddError(int, pb::io::ColumnNumber, const std::string&) override {}
};

// Follows the tokens of a document and knows at each the message around it. A pushdown of four states is enough,
// because the document was valid up to the error.
class Walker {
 public:
  Walker(const Descriptor* type, const std::string& path) { frames_.push_back({type, path, nullptr, false, {}, 0, 0}); }

  void take(const std::string& token, int line, int column) {
    Frame& top = frames_.back();
    if (token == "{" || token == "<") {
      open(line, column);
    } else if (token == "}" || token == ">") {
      if (frames_.size() > 1) frames_.pop_back();
      if (!frames_.back().is_list) end_value();
    } else if (token == "[" && expects_value_) {
      top.is_list = true;
    } else if (token == "]" && top.is_list) {
      top.is_list = false;
      end_value();
    } else if (token == ":") {
      expects_value_ = true;
    } else if (token == "," || token == ";" || token == "-") {
      return;
    } else if (expects_value_) {
      if (!top.is_list) end_value();
    } else {
      top.field = top.type ? top.type->FindFieldByName(token) : nullptr;
      name_ = token;
    }
  }

  std::vector<OpenBrace> open_braces() const {
    std::vector<OpenBrace> out;
    for (size_t i = 1; i < frames_.size(); ++i)
      out.push_back({frames_[i].path, frames_[i].type, frames_[i].line, frames_[i].column});
    return out;
  }

  TextPlace place() const { return {frames_.back().path, frames_.back().type, frames_.back().field, 0, 0}; }

 private:
  struct Frame {
    const Descriptor* type;
    std::string path;
    const FieldDescriptor* field;  // the last one named
    bool is_list;                  // inside `field: [ ... ]`
    std::map<std::string, int> counts;
    int line, column;  // of the '{'
  };

  void open(int line, int column) {
    Frame& top = frames_.back();
    const std::string& name = top.field ? top.field->name() : name_;
    std::string path = child_path(top.path, name);
    if (top.field && top.field->is_repeated()) path = element_path(path, top.counts[name]++);
    const Descriptor* type = top.field ? top.field->message_type() : nullptr;
    expects_value_ = false;
    frames_.push_back({type, path, nullptr, false, {}, line, column});
  }

  void end_value() {
    expects_value_ = frames_.back().is_list;
    if (!frames_.back().is_list) frames_.back().field = nullptr;
  }

  std::vector<Frame> frames_;
  std::string name_;
  bool expects_value_ = false;
};

std::string unquoted(const std::string& token) {
  bool is_quoted = token.size() >= 2 && (token[0] == '"' || token[0] == '\'');
  return is_quoted ? token.substr(1, token.size() - 2) : token;
}

}  // namespace

std::string child_path(const std::string& path, std::string_view name) {
  return path.empty() ? std::string(name) : str(path, ".", name);
}

std::string element_path(const std::string& path, int index) { return str(path, "[", index, "]"); }

namespace {

// Calls f(token) up to and with (line, column).
template <class F>
void for_each_token(std::string_view text, int line, int column, F f) {
  pb::io::ArrayInputStream stream(text.data(), static_cast<int>(text.size()));
  IgnoreErrors errors;
  pb::io::Tokenizer tokens(&stream, &errors);
  tokens.set_allow_f_after_float(true);
  tokens.set_comment_style(pb::io::Tokenizer::SH_COMMENT_STYLE);
  tokens.set_require_space_after_number(false);
  tokens.set_allow_multiline_strings(true);
  while (tokens.Next()) {
    const auto& token = tokens.current();
    if (token.line > line || (token.line == line && token.column > column)) break;
    f(token);
  }
}

}  // namespace

std::vector<OpenBrace> open_braces(std::string_view text, const Descriptor& type, const std::string& path, int line,
                                   int column) {
  Walker walker(&type, path);
  for_each_token(text, line, column,
                 [&](const pb::io::Tokenizer::Token& token) { walker.take(token.text, token.line, token.column); });
  return walker.open_braces();
}

TextPlace find_place(std::string_view text, const Descriptor& type, const std::string& path, int line, int column,
                     const std::string& word) {
  Walker walker(&type, path);
  TextPlace last = walker.place(), found = last;
  bool is_found = false;
  for_each_token(text, line, column, [&](const pb::io::Tokenizer::Token& token) {
    TextPlace before = walker.place();
    walker.take(token.text, token.line, token.column);
    // The field that a value belongs to is known before the value, that of a name after it.
    last = {before.path, before.type, before.field ? before.field : walker.place().field, token.line, token.column};
    if (!word.empty() && unquoted(token.text) == word) {
      found = last;
      is_found = true;
    }
  });
  return is_found ? found : last;
}

}  // namespace weft::config
