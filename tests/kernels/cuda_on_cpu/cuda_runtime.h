// What csrc/cuda needs of CUDA, in C++: a block's threads take turns on one CPU thread, from barrier to barrier. For
// tests; no kernel and no operator here.
//
// Blocks run one after the other. Shared memory is thread_local, because what is can be found and filled with garbage
// before each block. A launch fails where threads of a block miss a barrier or wait at different ones. Threads take
// turns in an order that `cuda_on_cpu::order` chooses: where a barrier is missing, the results depend on it.
#pragma once

#include <link.h>
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static thread_local
#define __syncthreads() cuda_on_cpu::wait(cuda_on_cpu::State::at_barrier, 0, __LINE__)
#define __syncthreads_or(predicate) cuda_on_cpu::any(predicate, __LINE__)
#define __ballot_sync(whole_warp, predicate) cuda_on_cpu::ballot(predicate, __LINE__)
#define __shfl_up_sync(whole_warp, value, distance, width) cuda_on_cpu::shuffle_up(value, distance, width, __LINE__)

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};
struct uchar2 {
    unsigned char x, y;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline uchar2 make_uchar2(unsigned char x, unsigned char y) { return {x, y}; }

using std::max;
using std::min;

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(unsigned bits) { return __builtin_ffs(static_cast<int>(bits)); }
inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
}
template <typename T>
T __ldg(const T* from) {
    return *from;
}
template <typename T>
void __stcs(T* to, T value) {
    *to = value;
}

// The variables of a thread; they are set whenever its turn comes.
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 1 << 16;

inline unsigned order = 0;  // 0: first thread first; 1: last thread first; else shuffled anew at every barrier

enum class State { fresh, ready, at_exchange, at_barrier, done };

struct Thread {
    jmp_buf where;
    State state;
    int line;         // of the barrier
    int sent, shown;  // to the warp at an exchange or to the block at a barrier, and what all see of it until the next
    bool any;         // at the last barrier, of the block
    void* sanitizer;
};

struct Block {
    std::vector<Thread> threads;
    std::vector<char> stacks;
    std::function<void()> kernel;
    ucontext_t entry;
    jmp_buf scheduler;
    unsigned current;
};
inline Block block;

// Ends the launch; for the scheduler, not for threads.
[[noreturn]] inline void fail(const char* message, int line) {
    throw std::runtime_error(std::string(message) + " (line " + std::to_string(line) + ")");
}

// AddressSanitizer is told before and after each change of stacks.
inline const void* scheduler_stack;
inline size_t scheduler_size;
#ifdef __SANITIZE_ADDRESS__
inline void leaving(void** state, const void* to, size_t size) { __sanitizer_start_switch_fiber(state, to, size); }
inline void arriving(void* state) { __sanitizer_finish_switch_fiber(state, nullptr, nullptr); }
inline void arriving_first() { __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size); }
#else
inline void leaving(void**, const void*, size_t) {}
inline void arriving(void*) {}
inline void arriving_first() {}
#endif

// Back to the scheduler, until the thread's turn comes again.
inline void wait(State state, int sent, int line) {
    Thread& thread = block.threads[block.current];
    thread.state = state;
    thread.sent = sent;
    thread.line = line;
    if (_setjmp(thread.where) == 0) {
        leaving(&thread.sanitizer, scheduler_stack, scheduler_size);
        _longjmp(block.scheduler, 1);
    }
    arriving(block.threads[block.current].sanitizer);
}

inline bool any(bool predicate, int line) {
    wait(State::at_barrier, predicate, line);
    return block.threads[block.current].any;
}

inline unsigned ballot(bool predicate, int line) {
    wait(State::at_exchange, predicate, line);
    unsigned votes = 0;
    for (unsigned lane = 0; lane < kWarp; ++lane) {
        votes |= unsigned{block.threads[block.current / kWarp * kWarp + lane].shown != 0} << lane;
    }
    return votes;
}

// Of the thread `distance` before in a group of `width`, the thread's own where there is none.
inline int shuffle_up(int value, unsigned distance, unsigned width, int line) {
    wait(State::at_exchange, value, line);
    const bool exists = block.current % width >= distance;
    return block.threads[block.current - (exists ? distance : 0)].shown;
}

inline void enter() {
    arriving_first();
    block.kernel();
    block.threads[block.current].state = State::done;
    leaving(nullptr, scheduler_stack, scheduler_size);
    _longjmp(block.scheduler, 1);
}

inline void turn(unsigned index) {
    static void* sanitizer;
    char* stack = block.stacks.data() + index * kStack;
    const bool fresh = block.threads[index].state == State::fresh;
    block.current = index;
    threadIdx = dim3(index % blockDim.x, index / blockDim.x % blockDim.y, index / blockDim.x / blockDim.y);
    if (_setjmp(block.scheduler) == 0) {
        leaving(&sanitizer, stack, kStack);
        if (!fresh) _longjmp(block.threads[index].where, 1);
        getcontext(&block.entry);
        block.entry.uc_stack.ss_sp = stack;
        block.entry.uc_stack.ss_size = kStack;
        block.entry.uc_link = nullptr;
        makecontext(&block.entry, enter, 0);
        setcontext(&block.entry);
    }
    arriving(sanitizer);
}

// Fills all that is thread_local in this library with garbage.
inline void spoil_shared_memory() {
    static thread_local volatile char some;
    some = 0;  // the memory exists from its first use on
    const auto spoil = [](dl_phdr_info* library, size_t, void*) {
        bool own = false;
        size_t size = 0;
        for (int i = 0; i < library->dlpi_phnum; ++i) {
            const auto& segment = library->dlpi_phdr[i];
            const uintptr_t start = library->dlpi_addr + segment.p_vaddr, at = reinterpret_cast<uintptr_t>(&block);
            if (segment.p_type == PT_LOAD) own = own || (start <= at && at < start + segment.p_memsz);
            if (segment.p_type == PT_TLS) size = segment.p_memsz;
        }
        if (own) memset(library->dlpi_tls_data, 0xcd, size);
        return int{own};
    };
    if (dl_iterate_phdr(spoil, nullptr) != 1) fail("there is no shared memory", 0);
}

// Lets those on that wait together: a warp at an exchange, or all at a barrier.
inline void release(unsigned begin, unsigned end, State state) {
    const int line = block.threads[begin].line;
    bool any = false;
    for (unsigned i = begin; i < end; ++i) {
        const Thread& thread = block.threads[i];
        if (thread.state != state) return;
        if (thread.line != line) fail("threads wait at different barriers", line);
        any = any || thread.sent != 0;
    }
    for (unsigned i = begin; i < end; ++i) {
        block.threads[i].shown = block.threads[i].sent;
        block.threads[i].any = any;
        block.threads[i].state = State::ready;
    }
}

// A warp goes on until all of its threads wait at a barrier or are done; then it is the next warp's turn.
inline bool run_warp(const std::vector<unsigned>& lanes, unsigned begin) {
    for (bool ran = false;; ran = true) {
        bool again = false;
        for (unsigned lane : lanes) {
            const State state = block.threads[begin + lane].state;
            if (state != State::fresh && state != State::ready) continue;
            turn(begin + lane);
            again = true;
        }
        if (!again) return ran;
        release(begin, begin + kWarp, State::at_exchange);
    }
}

inline void run_block() {
    const unsigned count = blockDim.x * blockDim.y * blockDim.z;
    if (count == 0 || count > 1024 || count % kWarp != 0) fail("a block is no multiple of a warp", 0);
    spoil_shared_memory();
    block.threads.assign(count, {});
    block.stacks.resize(count * kStack);
    std::vector<unsigned> warps(count / kWarp), lanes(kWarp);
    std::iota(warps.begin(), warps.end(), 0u);
    std::iota(lanes.begin(), lanes.end(), 0u);
    if (order == 1) std::reverse(warps.begin(), warps.end());
    if (order == 1) std::reverse(lanes.begin(), lanes.end());
    std::mt19937 random(order);
    for (bool ran = true; ran; release(0, count, State::at_barrier)) {
        if (order > 1) std::shuffle(warps.begin(), warps.end(), random);
        if (order > 1) std::shuffle(lanes.begin(), lanes.end(), random);
        ran = false;
        for (unsigned warp : warps) ran = run_warp(lanes, warp * kWarp) || ran;
    }
    for (const Thread& thread : block.threads) {
        if (thread.state != State::done) fail("threads of a block wait for others that do not come", thread.line);
    }
}

}  // namespace cuda_on_cpu

using cudaStream_t = void*;
enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorLaunchFailure = 719
};

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
};

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
    gridDim = config->gridDim;
    blockDim = config->blockDim;
    cuda_on_cpu::block.kernel = [&] { kernel(arguments...); };
    try {
        for (unsigned i = 0; i < gridDim.x; ++i) {
            blockIdx = dim3(i);
            cuda_on_cpu::run_block();
        }
        return cudaSuccess;
    } catch (const std::runtime_error& error) {
        fprintf(stderr, "cuda_on_cpu: %s\n", error.what());
        return cudaErrorLaunchFailure;
    }
}
