// weft claims GRID... [--runs DIR]: the page of what studies make of papers' claims. The reports of the studies are read, no run is opened.
#pragma once

#include "trainers/command/command.h"

namespace weft::cli {

Action define_claims(Arguments& app);

}  // namespace weft::cli
