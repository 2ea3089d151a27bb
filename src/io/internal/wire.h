// The wire format of Protocol Buffers, as far as event files use it: varint, 64-bit, bytes, 32-bit fields.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace weft::io::internal {

enum class WireType : uint8_t { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };

// Appends fields to a message.
class WireWriter {
 public:
  WireWriter& varint(int field, uint64_t value) { return tag(field, WireType::varint).raw_varint(value); }
  WireWriter& real64(int field, double value) { return tag(field, WireType::fixed64).raw(&value, sizeof value); }
  WireWriter& real32(int field, float value) { return tag(field, WireType::fixed32).raw(&value, sizeof value); }
  WireWriter& bytes(int field, std::string_view value) {
    tag(field, WireType::bytes).raw_varint(value.size());
    return raw(value.data(), value.size());
  }
  const std::string& text() const { return text_; }

 private:
  WireWriter& tag(int field, WireType type) {
    return raw_varint(static_cast<uint64_t>(field) << 3 | static_cast<uint64_t>(type));
  }
  WireWriter& raw_varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) text_.push_back(static_cast<char>(value | 0x80));
    text_.push_back(static_cast<char>(value));
    return *this;
  }
  WireWriter& raw(const void* data, size_t size) {
    text_.append(static_cast<const char*>(data), size);
    return *this;
  }
  std::string text_;
};

// Walks over the fields of a message that may be damaged:
//   WireReader in(message);
//   while (in.next()) if (in.field() == 1 && in.type() == WireType::bytes) use(in.bytes());
//   if (!in.is_good()) ...
class WireReader {
 public:
  explicit WireReader(std::string_view message) : rest_(message) {}

  // Reads one field; false at the end or at a fault.
  bool next() {
    if (rest_.empty() || !is_good_) return false;
    uint64_t key = take_varint();
    field_ = static_cast<int>(key >> 3 & 0x1fffffff);
    type_ = static_cast<WireType>(key & 7);
    if (!is_good_ || field_ == 0) return is_good_ = false;
    switch (type_) {
      case WireType::varint: number_ = take_varint(); return is_good_;
      case WireType::fixed64: take(8); return is_good_;
      case WireType::fixed32: take(4); return is_good_;
      case WireType::bytes: take(take_varint()); return is_good_;
    }
    return is_good_ = false;
  }

  bool is_good() const { return is_good_; }
  int field() const { return field_; }
  WireType type() const { return type_; }
  bool is(int field, WireType type) const { return field_ == field && type_ == type; }
  uint64_t varint() const { return number_; }
  std::string_view bytes() const { return bytes_; }  // of a bytes, fixed64 or fixed32 field
  double real64() const { return read<double>(); }
  float real32() const { return read<float>(); }

 private:
  template <class T>
  T read() const {
    T value;
    std::memcpy(&value, bytes_.data(), sizeof value);
    return value;
  }
  uint64_t take_varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 70; shift += 7) {
      if (rest_.empty()) break;
      uint64_t byte = static_cast<uint8_t>(rest_[0]);
      rest_.remove_prefix(1);
      if (shift < 64) value |= (byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    is_good_ = false;
    return 0;
  }
  void take(uint64_t size) {
    if (!is_good_ || size > rest_.size()) {
      is_good_ = false;
      return;
    }
    bytes_ = rest_.substr(0, size);
    rest_.remove_prefix(size);
  }

  std::string_view rest_, bytes_;
  uint64_t number_ = 0;
  int field_ = 0;
  WireType type_ = WireType::varint;
  bool is_good_ = true;
};

}  // namespace weft::io::internal
