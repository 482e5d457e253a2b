// What LLVM's runtime of the thread sanitizer has and GCC's has not: rustc calls these by name,
// where GCC leaves the plain functions for its runtime to intercept.
#include <cstddef>
#include <cstring>

extern "C" {

void* __tsan_memcpy(void* to, const void* from, std::size_t size) {
  return std::memcpy(to, from, size);
}

void* __tsan_memmove(void* to, const void* from, std::size_t size) {
  return std::memmove(to, from, size);
}

void* __tsan_memset(void* to, int value, std::size_t size) { return std::memset(to, value, size); }

} // extern "C"
