// The `weft` program. A program with parts of its own has the same main.
#include "weft/trainers/cli.h"

int main(int argc, char** argv) { return weft::cli::main(argc, argv); }
