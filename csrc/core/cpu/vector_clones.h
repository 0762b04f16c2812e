// A function marked with VECTOR_CLONES is compiled for several instruction sets. The best version for the machine is
// chosen when the library is loaded.
//
// So one library serves every x86-64 processor (no -march=native), and -ffp-contract=off keeps the bits of all
// versions equal. Clones need a loader that can choose (GCC, glibc). Under sanitizers there are none, because their
// instrumentation is not ready when the loader chooses. A template cannot have clones, so overloads that have clones
// call the template.
//
// INLINE_IN_CLONES before a template that such functions share makes the compiler inline it into each of them. A real
// call would run code compiled for the default instruction set.
#pragma once

#include <cstdlib>  // defines __GLIBC__, as any standard header does

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define VECTOR_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define VECTOR_CLONES
#endif

#if defined(__GNUC__)
#define INLINE_IN_CLONES __attribute__((always_inline)) inline
#else
#define INLINE_IN_CLONES inline
#endif
