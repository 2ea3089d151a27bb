// The plots of one page, drawn by gnuplot.
#pragma once

#include <functional>
#include <string>
#include <utility>

#include "weft/io/report.h"

namespace weft::io::internal {

class Plotter {
 public:
  // `timeout_s` is for each plot; `is_stopping` ends a running gnuplot.
  explicit Plotter(double timeout_s, std::function<bool()> is_stopping = {})
      : timeout_s_(timeout_s), is_stopping_(std::move(is_stopping)) {}

  // As plot_svg(). A gnuplot that hung once is not started again: a page waits for one timeout, not for one per plot.
  std::string svg(const Picture& picture, const std::string& id);
  // The <svg> element that gnuplot makes of a script; `what` is its name for errors.
  std::string run(const std::string& script, const std::string& what);

 private:
  double timeout_s_;
  std::function<bool()> is_stopping_;
  bool has_hung_ = false;
};

}  // namespace weft::io::internal
