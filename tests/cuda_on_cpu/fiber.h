// A fiber: a function with a stack of its own that can be suspended and resumed. All code that depends on the
// processor or on a sanitizer is in this file.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// The build sets CUDA_ON_CPU_TSAN for ThreadSanitizer. The runner itself is compiled without -fsanitize=thread, so that
// only kernels are checked.
#if defined(CUDA_ON_CPU_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

#if !defined(__x86_64__) && !defined(__aarch64__)
#define CUDA_ON_CPU_UCONTEXT
#endif
#if defined(CUDA_ON_CPU_UCONTEXT)
#include <ucontext.h>
#endif

namespace cuda_on_cpu {

#if defined(CUDA_ON_CPU_UCONTEXT)

using Context = ucontext_t;

inline void switch_context(Context& save, Context& load) { swapcontext(&save, &load); }

inline void make_context(Context& context, char* stack, size_t size, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = size;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}

#else

// A suspended context is its stack pointer: the registers that a function must preserve lie on its stack. A switch
// takes a few nanoseconds. swapcontext takes hundreds, because it also saves the signal mask with a system call.
using Context = void*;

extern "C" void cuda_on_cpu_switch(Context* save, Context load);

inline void switch_context(Context& save, Context& load) { cuda_on_cpu_switch(&save, load); }

#if defined(__x86_64__)
asm(R"(
  .text
  .hidden cuda_on_cpu_switch
  .globl cuda_on_cpu_switch
  .type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size cuda_on_cpu_switch, .-cuda_on_cpu_switch
)");
constexpr size_t kReturnAddress = 6;
constexpr size_t kFrameWords = 8;  // one word more than needed, so that the stack is aligned at entry as after a call
#else
asm(R"(
  .text
  .hidden cuda_on_cpu_switch
  .globl cuda_on_cpu_switch
  .type cuda_on_cpu_switch, %function
cuda_on_cpu_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
  .size cuda_on_cpu_switch, .-cuda_on_cpu_switch
)");
constexpr size_t kReturnAddress = 11;  // x30
constexpr size_t kFrameWords = 20;
#endif

inline void make_context(Context& context, char* stack, size_t size, void (*entry)()) {
  auto* frame = reinterpret_cast<uintptr_t*>(stack + size) - kFrameWords;
  for (size_t i = 0; i < kFrameWords; ++i) frame[i] = 0;
  frame[kReturnAddress] = reinterpret_cast<uintptr_t>(entry);
  context = frame;
}

#endif

class Fiber {
 public:
  Fiber() {
    // Below the stack lies a page that may not be touched: an overflow is a crash, never a silent overwrite.
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    mapped_ = kStackBytes + page;
    void* const memory =
        mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, page, PROT_NONE);
    stack_ = static_cast<char*>(memory) + page;
#if defined(CUDA_ON_CPU_TSAN)
    tsan_fiber_ = __tsan_create_fiber(0);
#endif
  }

  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  ~Fiber() {
#if defined(CUDA_ON_CPU_TSAN)
    __tsan_destroy_fiber(tsan_fiber_);
#endif
    munmap(stack_ + kStackBytes - mapped_, mapped_);
  }

  // The next resume() begins `entry`, which must end with exit() and never return.
  void start(void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stack_, kStackBytes);  // marks of frames that a failed kernel left behind
    fake_stack_ = nullptr;
#endif
    make_context(context_, stack_, kStackBytes, entry);
  }

  // Called by the scheduler: runs the fiber until it suspends or exits.
  void resume() {
#if defined(__SANITIZE_ADDRESS__)
    void* own_fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&own_fake_stack, stack_, kStackBytes);
#endif
#if defined(CUDA_ON_CPU_TSAN)
    tsan_scheduler_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(tsan_fiber_, __tsan_switch_to_fiber_no_sync);
#endif
    switch_context(scheduler_, context_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(own_fake_stack, nullptr, nullptr);
#endif
  }

  // The first call in the fiber.
  void entered() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack_, &scheduler_stack_, &scheduler_stack_bytes_);
#endif
  }

  // Called in the fiber: returns to the scheduler until the next resume().
  void suspend() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fake_stack_, scheduler_stack_, scheduler_stack_bytes_);
#endif
#if defined(CUDA_ON_CPU_TSAN)
    __tsan_switch_to_fiber(tsan_scheduler_, __tsan_switch_to_fiber_no_sync);
#endif
    switch_context(context_, scheduler_);
    entered();
  }

  // The last call in the fiber.
  [[noreturn]] void exit() {
    suspend();
    std::abort();  // a fiber that has exited is never resumed
  }

 private:
  static constexpr size_t kStackBytes =
      128 << 10;  // a kernel that needs more would spill on a GPU; only touched pages take memory

  Context context_ = {};
  Context scheduler_ = {};
  char* stack_ = nullptr;
  size_t mapped_ = 0;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_bytes_ = 0;
#endif
#if defined(CUDA_ON_CPU_TSAN)
  void* tsan_fiber_ = nullptr;
  void* tsan_scheduler_ = nullptr;
#endif
};

}  // namespace cuda_on_cpu
