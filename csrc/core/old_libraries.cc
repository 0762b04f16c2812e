// Symbols that current compilers use and that glibc and libstdc++ of manylinux_2_28 do not have; only in wheels
// (SSD_EXT_GLIBC).
#include <sstream>

// Whether shared_ptr may count without atomics; glibc defines it since 2.32. 0: always with atomics.
extern "C" char __libc_single_threaded = 0;

// libstdc++ has these constructors since GCC 9.
template std::ostringstream::basic_ostringstream();
template std::stringstream::basic_stringstream();
