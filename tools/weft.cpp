// The `weft` program. A program with parts of its own has the same main; this one brings the references that its suite compares with.
#include "tests/reference/mixers.h"
#include "weft/trainers/cli.h"

int main(int argc, char** argv) { return weft::cli::main(argc, argv, {.references = weft::reference::mixers()}); }
