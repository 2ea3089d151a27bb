// weft convert, for the table of commands.
#pragma once

#include "trainers/command/command.h"

namespace weft::cli {

Action define_convert(Arguments& app);

}  // namespace weft::cli
