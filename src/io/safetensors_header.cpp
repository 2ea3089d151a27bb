// Header grammar: {"name": {"dtype": text, "shape": [sizes], "data_offsets": [begin, end]}, ..., "__metadata__": {text:
// text}}. Parsed as a stream of events, because a document tree would silently drop names that occur twice.
#include "src/io/internal/safetensors_header.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <tuple>
#include <utility>

#include "weft/core/error.h"

namespace weft::io::internal {

namespace {

constexpr uint64_t kPrefixBytes = 8;
constexpr std::string_view kDamaged = "the file is damaged or no safetensors file; fetch or write it again";

struct DtypeBits {
  std::string_view name;
  int bits;
};
constexpr std::array<DtypeBits, 22> kDtypes{
    {{"BOOL", 8},        {"U8", 8},   {"I8", 8},      {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"I16", 16},
     {"U16", 16},        {"F16", 16}, {"BF16", 16},   {"I32", 32},    {"U32", 32},    {"F32", 32},
     {"F64", 64},        {"I64", 64}, {"U64", 64},    {"C64", 64},    {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
     {"F8_E5M2FNUZ", 8}, {"F4", 4},   {"F6_E2M3", 6}, {"F6_E3M2", 6}}};

[[noreturn]] void refuse(const std::string& path, uint64_t at, std::string_view problem) {
  fail(str("safetensors ", path, ": byte ", at, ": ", problem), std::string(kDamaged));
}

// Reads the text and remembers how far the parser came, for the byte offset of an error.
struct Cursor {
  using iterator_category = std::forward_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  const char* at = nullptr;
  const char** seen = nullptr;

  reference operator*() const { return *at; }
  Cursor& operator++() {
    *seen = ++at;
    return *this;
  }
  Cursor operator++(int) {
    Cursor old = *this;
    ++*this;
    return old;
  }
  friend bool operator==(const Cursor& a, const Cursor& b) { return a.at == b.at; }
  friend bool operator!=(const Cursor& a, const Cursor& b) { return a.at != b.at; }
};

// One tensor while its object is read.
struct RawTensor {
  std::optional<std::string> dtype;
  std::optional<std::vector<uint64_t>> shape, offsets;
  uint64_t at = 0;
};

// Receives the parser's events. Returning is always true; faults are thrown.
class HeaderEvents {
 public:
  HeaderEvents(const std::string& path, const char* begin, const char* const& seen)
      : path_(path), begin_(begin), seen_(seen) {}

  bool null() { return unexpected("null"); }
  bool boolean(bool) { return unexpected("true or false"); }
  bool number_integer(int64_t) { return unexpected("a negative number"); }
  bool number_float(double, const std::string&) { return unexpected("a number that is no 64-bit integer"); }
  bool binary(std::vector<uint8_t>&) { return unexpected("binary data"); }

  bool number_unsigned(uint64_t value) {
    if (state_ != State::numbers) return unexpected("a number");
    numbers_.push_back(value);
    return true;
  }

  bool string(std::string& value) {
    if (state_ == State::metadata) {
      if (!metadata.emplace(std::move(metadata_key_), std::move(value)).second)
        refuse_here("a metadata key occurs twice");
      return true;
    }
    if (state_ != State::dtype) return unexpected("a text");
    tensor().dtype = std::move(value);
    state_ = State::tensor;
    return true;
  }

  bool start_object(size_t) {
    switch (state_) {
      case State::start: state_ = State::top; return true;
      case State::tensor_object: state_ = State::tensor; return true;
      case State::metadata_object: state_ = State::metadata; return true;
      case State::top:
      case State::tensor:
      case State::dtype:
      case State::shape_array:
      case State::offsets_array:
      case State::numbers:
      case State::metadata: break;
    }
    return unexpected("an object");
  }

  bool key(std::string& name) {
    if (state_ == State::top) return top_key(name);
    if (state_ == State::metadata) {
      metadata_key_ = std::move(name);
      return true;
    }
    if (name == "dtype" && !tensor().dtype) state_ = State::dtype;
    else if (name == "shape" && !tensor().shape) state_ = State::shape_array;
    else if (name == "data_offsets" && !tensor().offsets) state_ = State::offsets_array;
    else refuse_here(str("tensor '", current_->first, "' has the field '", name, "', which is unknown or given twice"));
    return true;
  }

  bool end_object() {
    if (state_ == State::tensor) {
      const RawTensor& t = tensor();
      if (!t.dtype || !t.shape || !t.offsets)
        refuse_here(str("tensor '", current_->first, "' lacks dtype, shape or data_offsets"));
    }
    state_ = State::top;  // the parser itself sees to it that objects are balanced
    return true;
  }

  bool start_array(size_t) {
    if (state_ != State::shape_array && state_ != State::offsets_array) return unexpected("an array");
    is_shape_ = state_ == State::shape_array;
    state_ = State::numbers;
    numbers_.clear();
    return true;
  }

  bool end_array() {
    (is_shape_ ? tensor().shape : tensor().offsets) = std::move(numbers_);
    numbers_.clear();
    state_ = State::tensor;
    return true;
  }

  bool parse_error(size_t, const std::string&, const nlohmann::json::exception& error) {
    // The text after the last colon is the reason; what stands before repeats the library's own positions.
    std::string text = error.what();
    size_t colon = text.rfind(": ");
    refuse_here(str("the header is no valid JSON (", colon == std::string::npos ? text : text.substr(colon + 2), ")"));
  }

  std::map<std::string, RawTensor> tensors;
  std::map<std::string, std::string> metadata;

 private:
  enum class State {
    start,
    top,
    tensor_object,
    tensor,
    dtype,
    shape_array,
    offsets_array,
    numbers,
    metadata_object,
    metadata
  };

  uint64_t position() const { return kPrefixBytes + static_cast<uint64_t>(seen_ - begin_); }
  [[noreturn]] void refuse_here(std::string_view problem) const { refuse(path_, position(), problem); }
  RawTensor& tensor() { return current_->second; }

  bool unexpected(std::string_view found) const {
    std::string where = state_ == State::start || state_ == State::top ? "the header"
                        : state_ == State::metadata || state_ == State::metadata_object
                            ? "__metadata__, which maps texts to texts,"
                            : str("tensor '", current_->first, "'");
    refuse_here(str(where, " holds ", found, " where the format has something else"));
  }

  bool top_key(std::string& name) {
    if (name == "__metadata__") {
      if (std::exchange(has_metadata_, true)) refuse_here("__metadata__ occurs twice");
      state_ = State::metadata_object;
      return true;
    }
    auto [at, is_new] = tensors.try_emplace(std::move(name));
    if (!is_new) refuse_here(str("tensor '", at->first, "' occurs twice"));
    current_ = at;
    tensor().at = position();
    state_ = State::tensor_object;
    return true;
  }

  const std::string& path_;
  const char* begin_;
  const char* const& seen_;
  State state_ = State::start;
  bool is_shape_ = false, has_metadata_ = false;
  std::string metadata_key_;
  std::vector<uint64_t> numbers_;
  std::map<std::string, RawTensor>::iterator current_;
};

bool weft_has(std::string_view dtype) {
  for (DType mine : {kF32, kBF16, kF64, kI64, kI32, kU8, kBool})
    if (safetensors_name(mine) == dtype) return true;
  return false;
}

// Bits of all elements; nullopt if they do not fit 64 bits. Zero sizes count as one, so that no product of the others
// overflows.
std::optional<uint64_t> bits_of_shape(const std::vector<uint64_t>& shape, int bits) {
  uint64_t product = static_cast<uint64_t>(bits);
  bool is_empty = false;
  for (uint64_t size : shape) {
    is_empty |= size == 0;
    if (size > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
    if (__builtin_mul_overflow(product, std::max<uint64_t>(size, 1), &product)) return std::nullopt;
  }
  return is_empty ? 0 : product;
}

TensorEntry check_tensor(const std::string& name, const RawTensor& raw, uint64_t data_begin, uint64_t data_bytes,
                         const std::string& path) {
  int bits = bits_of(*raw.dtype);
  if (bits == 0)
    refuse(path, raw.at, str("tensor '", name, "' has dtype '", *raw.dtype, "', which the format does not have"));
  if (raw.offsets->size() != 2)
    refuse(path, raw.at, str("tensor '", name, "' has ", raw.offsets->size(), " data_offsets, not 2"));
  auto [begin, end] = std::pair((*raw.offsets)[0], (*raw.offsets)[1]);
  if (begin > end || end > data_bytes)
    refuse(path, raw.at,
           str("tensor '", name, "' has data_offsets [", begin, ", ", end, "], outside of the ", data_bytes,
               " bytes of data"));
  auto total_bits = bits_of_shape(*raw.shape, bits);
  if (!total_bits) refuse(path, raw.at, str("the shape of tensor '", name, "' overflows"));
  if (*total_bits % 8 != 0 || *total_bits / 8 != end - begin)
    refuse(path, raw.at,
           str("tensor '", name, "' has ", end - begin, " bytes, but its shape and dtype ", *raw.dtype, " need ",
               *total_bits / 8));
  TensorEntry entry{.name = name, .dtype = *raw.dtype, .shape = {}, .offset = data_begin + begin, .size = end - begin};
  entry.shape.assign(raw.shape->begin(), raw.shape->end());
  entry.is_loadable = weft_has(entry.dtype) && entry.shape.size() <= static_cast<size_t>(kMaxDims);
  return entry;
}

std::string_view header_text(std::string_view file, const std::string& path) {
  if (file.size() < kPrefixBytes)
    refuse(path, 0, str("the file has ", file.size(), " bytes, not even the 8 of the header's length"));
  uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof length);
  if (length > kMaxHeaderBytes)
    refuse(path, 0, str("the header's length is ", length, ", more than ", kMaxHeaderBytes));
  if (length > file.size() - kPrefixBytes)
    refuse(path, 0, str("the header's length is ", length, ", but only ", file.size() - kPrefixBytes, " bytes follow"));
  std::string_view text = file.substr(kPrefixBytes, length);
  if (text.empty() || text[0] != '{') refuse(path, kPrefixBytes, "the header does not begin with '{'");
  size_t zero = text.find('\0');  // ends the text for the JSON parser, which would not look at the rest
  if (zero != std::string_view::npos) refuse(path, kPrefixBytes + zero, "the header holds a zero byte");
  return text;
}

}  // namespace

int bits_of(std::string_view dtype) {
  for (const DtypeBits& row : kDtypes)
    if (row.name == dtype) return row.bits;
  return 0;
}

SafetensorsHeader parse_safetensors_header(std::string_view file, const std::string& path) {
  std::string_view text = header_text(file, path);
  const char* seen = text.data();
  HeaderEvents events(path, text.data(), seen);
  nlohmann::json::sax_parse(Cursor{text.data(), &seen}, Cursor{text.data() + text.size(), &seen}, &events);

  SafetensorsHeader header;
  uint64_t data_begin = kPrefixBytes + text.size(), data_bytes = file.size() - data_begin;
  for (const auto& [name, raw] : events.tensors)
    header.tensors.push_back(check_tensor(name, raw, data_begin, data_bytes, path));
  std::sort(header.tensors.begin(), header.tensors.end(), [](const TensorEntry& a, const TensorEntry& b) {
    return std::tie(a.offset, a.size, a.name) < std::tie(b.offset, b.size, b.name);
  });
  uint64_t expected = data_begin;
  for (const TensorEntry& entry : header.tensors) {
    if (entry.offset != expected)
      refuse(
          path, entry.offset,
          str("the data of tensor '", entry.name, "' ", entry.offset < expected ? "overlaps" : "leaves a hole behind",
              " what comes before, which ends at byte ", expected));
    expected += entry.size;
  }
  if (expected != file.size())
    refuse(path, expected, str("the tensors end here, but the file has ", file.size(), " bytes"));
  header.metadata = std::move(events.metadata);
  return header;
}

std::string make_safetensors_header(const std::vector<TensorEntry>& tensors,
                                    const std::map<std::string, std::string>& metadata) {
  auto quoted = [](const std::string& text) {
    try {
      return nlohmann::json(text).dump();
    } catch (const nlohmann::json::exception&) {
      fail(str("safetensors: the name or metadata text '", text, "' is not valid UTF-8"), "use UTF-8");
    }
  };
  std::string json = "{\"__metadata__\":{";
  for (bool is_first = true; const auto& [key, value] : metadata) {
    json += str(std::exchange(is_first, false) ? "" : ",", quoted(key), ":", quoted(value));
  }
  json += "}";
  for (const TensorEntry& entry : tensors) {
    std::string shape;
    for (int64_t size : entry.shape) shape += str(shape.empty() ? "" : ",", size);
    json += str(",", quoted(entry.name), ":{\"dtype\":\"", entry.dtype, "\",\"shape\":[", shape, "],\"data_offsets\":[",
                entry.offset, ",", entry.offset + entry.size, "]}");
  }
  return json + "}";
}

}  // namespace weft::io::internal
