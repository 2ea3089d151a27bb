// Wrong on purpose: it leaves bad.h out.
#pragma once

#include "weft/core/long.h"
