// What compilers of today ask of glibc and libstdc++ beyond those of manylinux_2_28; only in wheels (SSD_EXT_GLIBC).
#include <sstream>

// Whether shared_ptr may count without atomics, which glibc 2.32 and newer tell.
extern "C" char __libc_single_threaded = 0;

// libstdc++ has them since GCC 9.
template std::ostringstream::basic_ostringstream();
template std::stringstream::basic_stringstream();
