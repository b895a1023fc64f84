// Threads that run one function side by side and meet at barriers. They spin while they wait, since a step has hundreds
// of barriers a few microseconds apart, give way after a while, and sleep between steps.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace puna {

class Team {
 public:
  explicit Team(int size) : size_(size) {
    for (int rank = 1; rank < size; ++rank) threads_.emplace_back([this, rank] { work(rank); });
  }

  ~Team() {
    announce(nullptr);
    for (auto& thread : threads_) thread.join();
  }

  int size() const { return size_; }

  // Call body(rank) on every thread, the caller's being rank 0, and return when all are done. What `is_small` the caller
  // does alone: it would be done before the others have begun.
  void run(const std::function<void(int)>& body, bool is_small = false) {
    num_active_ = is_small ? 1 : size_;
    if (num_active_ > 1) announce(&body);
    body(0);
    barrier();
  }

  // Deal out the indices below `count`, `grain` neighbours at a time to whoever is free, and wait until all are done.
  template <class Body> void share(int count, Body&& body, int grain = 1) {
    for (int first; (first = next_.fetch_add(grain, std::memory_order_relaxed)) < count;)
      for (int index = first; index < std::min(first + grain, count); ++index) body(index);
    barrier();
  }

  // The grain for work that is bound by memory, which is read fastest in one go, but nobody should wait long at the end.
  int grain(int count) const { return std::max(1, count / (4 * num_active_)); }

  void barrier() {
    // NOTE: read before arriving: when all have arrived, the caller may already change it for what comes next.
    int generation = generation_.load(std::memory_order_acquire), num_active = num_active_;
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_active) {
      arrived_.store(0, std::memory_order_relaxed);
      next_.store(0, std::memory_order_relaxed);
      generation_.store(generation + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; generation_.load(std::memory_order_acquire) == generation; ++spins) rest(spins);
  }

 private:
  static constexpr int SPINS = 1000, PATIENCE = 10000;

  static void rest(int spins) {
    if (spins > SPINS) return std::this_thread::yield();
#if defined(__x86_64__)
    _mm_pause();
#endif
  }

  void announce(const std::function<void(int)>* body) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      body_ = body;
      round_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
  }

  void work(int rank) {
    for (int seen = 0;;) {
      for (int spins = 0; spins < PATIENCE && round_.load(std::memory_order_acquire) == seen; ++spins) rest(spins);
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return round_.load(std::memory_order_acquire) != seen; });
        ++seen;
      }
      if (!body_) return;
      (*body_)(rank);
      barrier();
    }
  }

  int size_, num_active_ = 1;
  std::vector<std::thread> threads_;
  const std::function<void(int)>* body_ = nullptr;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<int> round_{0};
  alignas(64) std::atomic<int> next_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> generation_{0};
};

}  // namespace puna
