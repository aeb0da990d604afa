// Included by every source of the wheel (see .ci/wheel), so that a library that is built with GCC 12 and glibc 2.36 loads where they
// are GCC 8 and glibc 2.27 too. The linker takes the newest version of each symbol that the build machine has; some are newer than
// that although nothing in them is needed. auditwheel finds the ones that are missing here.
#pragma once

#include <new>

// The functions moved to another library or took a new version; the old name is still there and does the same.
__asm__(".symver dlopen, dlopen@GLIBC_2.2.5");
__asm__(".symver dlsym, dlsym@GLIBC_2.2.5");
__asm__(".symver pthread_mutex_trylock, pthread_mutex_trylock@GLIBC_2.2.5");
__asm__(
    ".symver _ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE, "
    "_ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE@GLIBCXX_3.4.11");

// The two that old systems lack are defined here, for this library alone (all is hidden). Weak: each source defines them and the
// linker keeps one, which must be one that runs on any processor.
#ifndef __AVX__
extern "C" {
extern char __libc_single_threaded;
__attribute__((weak)) char __libc_single_threaded = 0;  // "there may be other threads", which is true
}
namespace std {
__attribute__((weak)) void __throw_bad_array_new_length() { throw bad_array_new_length(); }
}  // namespace std
#endif
