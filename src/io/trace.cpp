#include "weft/io/trace.h"

#include "src/io/internal/json_text.h"
#include "weft/core/error.h"
#include "weft/io/files.h"

namespace weft::io {

using internal::json_number;
using internal::json_string;

namespace {

std::string json_object(const TraceNumbers& numbers) {
  std::string text = "{";
  for (const auto& [name, value] : numbers)
    text += str(text.size() > 1 ? "," : "", json_string(name), ":", json_number(value));
  return text + "}";
}

}  // namespace

void TraceWriter::add(std::string event) { events_ += (events_.empty() ? "" : ",\n") + std::move(event); }

void TraceWriter::name_process(std::string_view name) {
  add(str("{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":", rank_,
          ",\"tid\":0,\"args\":{\"name\":", json_string(name), "}}"));
}

void TraceWriter::name_thread(int thread, std::string_view name) {
  add(str("{\"ph\":\"M\",\"name\":\"thread_name\",\"pid\":", rank_, ",\"tid\":", thread,
          ",\"args\":{\"name\":", json_string(name), "}}"));
}

void TraceWriter::span(const TraceSpan& span) {
  add(str("{\"ph\":\"X\",\"name\":", json_string(span.name), ",\"cat\":", json_string(span.category),
          ",\"ts\":", json_number(span.begin_us), ",\"dur\":", json_number(span.duration_us), ",\"pid\":", rank_,
          ",\"tid\":", span.thread, ",\"args\":", json_object(span.numbers), "}"));
}

void TraceWriter::counter(std::string_view name, double at_us, const TraceNumbers& series) {
  add(str("{\"ph\":\"C\",\"name\":", json_string(name), ",\"ts\":", json_number(at_us), ",\"pid\":", rank_,
          ",\"tid\":0,\"args\":", json_object(series), "}"));
}

void TraceWriter::message_sent(std::string_view name, uint64_t id, double at_us, int thread) {
  add_message('s', name, id, at_us, thread);
}
void TraceWriter::message_received(std::string_view name, uint64_t id, double at_us, int thread) {
  add_message('f', name, id, at_us, thread);
}

void TraceWriter::add_message(char phase, std::string_view name, uint64_t id, double at_us, int thread) {
  // Viewers join the two ends by name, category and id; "bp":"e" ends the arrow at the span around it, not at the next
  // one.
  add(str("{\"ph\":\"", phase, "\",\"name\":", json_string(name), ",\"cat\":\"message\",\"id\":", id,
          phase == 'f' ? ",\"bp\":\"e\"" : "", ",\"ts\":", json_number(at_us), ",\"pid\":", rank_, ",\"tid\":", thread,
          "}"));
}

std::string TraceWriter::text() const {
  return str("{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n", events_, "\n]}\n");
}

void TraceWriter::write(const std::string& path) const { write_file_atomically(path, text()); }

}  // namespace weft::io
