#!/bin/sh
# isa_symbols.sh ISA OBJECT...: fails if an object that is compiled with wider instructions defines a weak function (a template
# or inline function) that other objects could define too. The linker keeps one of them, and if it keeps the wide one, a CPU
# without these instructions dies on it. References to data (DW.ref) hold no instructions. Names that hold the instruction set (Isa of weft, N_AVX2.. of Highway) are safe.
set -e
isa=$1
shift
case $isa in
  avx2) mine='(weft::cpu::Isa)1|N_AVX2' ;;
  avx512) mine='(weft::cpu::Isa)2|N_AVX3' ;;
  *) echo "isa_symbols.sh: unknown instruction set '$isa'"; exit 2 ;;
esac
[ $# -gt 0 ] || { echo "isa_symbols.sh: no objects"; exit 2; }
pattern=$(printf '%s' "$mine" | sed 's/[()]/\\&/g')
bad=$(nm -C --defined-only "$@" | grep -E '^[0-9a-f]+ [WVu] ' | grep -Ev "$pattern|DW\.ref\." | cut -d' ' -f2- | sort -u || true)
if [ -n "$bad" ]; then
  echo "weak symbols compiled with $isa flags that other objects may share:"
  echo "$bad"
  echo "move them into a template on Isa, an anonymous namespace or HWY_NAMESPACE, or call nothing inline of std here"
  exit 1
fi
echo "$# objects of $isa: no shared weak symbols"
