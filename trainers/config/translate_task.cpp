// Messages of tasks as the options of the data library.
#include "trainers/config/enum_values.h"
#include "trainers/config/translate.h"

namespace weft::train {

data::RecallOptions recall_options(const config::Task& task) {
  switch (task.kind_case()) {
    case config::Task::kMqar: {
      const config::Mqar& m = task.mqar();
      return data::MqarOptions{.vocab = m.vocab(),
                               .pairs = m.pairs(),
                               .updates = m.updates(),
                               .passes = m.passes(),
                               .power = m.power(),
                               .has_random_filler = m.random_filler()};
    }
    case config::Task::kCopy:
      return data::CopyOptions{.kind = library_value<config::CopyKind, data::CopyKind>(task.copy().kind()),
                               .items = task.copy().items(),
                               .symbols = task.copy().symbols()};
    case config::Task::kInduction:
      return data::InductionOptions{.symbols = task.induction().symbols(), .repeats = task.induction().repeats()};
    case config::Task::kNeedle: {
      const config::Needle& n = task.needle();
      return data::NeedleOptions{.vocab = n.vocab(), .needles = n.needles(), .digits = n.digits(), .hops = n.hops()};
    }
    case config::Task::kState:
      return data::StateOptions{.kind = library_value<config::StateKind, data::StateKind>(task.state().kind()),
                                .size = task.state().size()};
    case config::Task::KIND_NOT_SET: break;
  }
  fail("config: data.task has no kind", "resolve the config before it is translated");
}

}  // namespace weft::train
