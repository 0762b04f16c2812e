// VECTOR_CLONES before a function: compiled for several instruction sets, the best one for the machine is
// chosen when the library is loaded.
//
// One library serves every x86-64 processor this way (no -march=native), and -ffp-contract=off keeps the bits
// of all versions equal. Only where the loader can choose (GCC, glibc), and not under sanitizers, whose
// instrumentation is not ready when the loader chooses. A template cannot have clones: hence overloads that call one.
//
// INLINE_IN_CLONES before a template that such functions share: a call would leave the instruction set behind.
#pragma once

#include <cstdlib>  // any standard header tells the C library

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
