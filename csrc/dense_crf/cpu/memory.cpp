#include "dense_crf/cpu/memory.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace weaktr {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kPage = 4096;
// Rows are read in no order: the larger the pages, the fewer misses.
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kWorthAsking = size_t{64} << 20;  // for less the system is not asked
constexpr size_t kShareKept = 8;                   // above 1/8 of free memory: freed after use

// Says what was missing.
class TooLarge : public std::bad_alloc {
 public:
  TooLarge(size_t wanted, size_t available)
      : message_("dense_crf: a buffer of " + std::to_string(wanted >> 20) +
                 " MiB does not fit the " + std::to_string(available >> 20) +
                 " MiB of memory that are left; use a smaller image, fewer labels or fewer images "
                 "at once") {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

// Bytes that the system can still give, or the largest number where it does not tell.
size_t available_memory() {
  size_t kilobytes = 0;
  if (std::FILE* file = std::fopen("/proc/meminfo", "r")) {
    char line[128];
    while (std::fgets(line, sizeof line, file))
      if (std::sscanf(line, "MemAvailable: %zu kB", &kilobytes) == 1) break;
    std::fclose(file);
  }
  return kilobytes ? kilobytes << 10 : ~size_t{0};
}

}  // namespace

void* Buffer::grow(size_t bytes, size_t kept) {
  if (bytes <= bytes_) return data_;
  const bool large = bytes > kWorthAsking;
  if (large && bytes > available_memory()) throw TooLarge(bytes, available_memory());
  const size_t alignment = bytes >= kHugePage ? kHugePage : kAlignment;
  const size_t rounded = (bytes + kAlignment + alignment - 1) / alignment * alignment;
  void* fresh = std::aligned_alloc(alignment, rounded);
  if (!fresh) throw TooLarge(bytes, available_memory());
#if defined(__linux__)
  if (alignment == kHugePage) madvise(fresh, rounded, MADV_HUGEPAGE);  // a wish; may be ignored
#endif
  if (large)  // take hold of it now, so that the next question about memory gets a true answer
    for (size_t at = 0; at < rounded; at += kPage) static_cast<volatile char*>(fresh)[at] = 0;
  if (kept) std::memcpy(fresh, data_, std::min(kept, bytes_));
  std::free(data_);
  data_ = fresh;
  bytes_ = rounded - kAlignment;
  return data_;
}

void Buffer::release() {
  std::free(data_);
  data_ = nullptr;
  bytes_ = 0;
}

void Workspace::need_kernels(int count) {
  if (count <= kernel_count) return;
  delete[] kernels;
  kernels = nullptr;
  kernel_count = 0;
  kernels = new LatticeMemory[static_cast<size_t>(count)];
  kernel_count = count;
}

bool Workspace::worth_keeping() const {
  size_t total = order.bytes() + scores.bytes() + labels.bytes() + marginals.bytes();
  for (int i = 0; i < kernel_count; ++i) {
    const LatticeMemory& kernel = kernels[i];
    total += kernel.records.bytes() + kernel.keys.bytes() + kernel.table.bytes() +
             kernel.rows[0].bytes() + kernel.rows[1].bytes() + kernel.merged.bytes() +
             kernel.scratch.bytes() + kernel.by_vertex.bytes();
    for (const Buffer& chains : kernel.chains) total += chains.bytes();
  }
  return total <= kWorthAsking || total <= available_memory() / kShareKept;
}

}  // namespace weaktr
