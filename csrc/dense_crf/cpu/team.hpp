// Threads for one image.
#pragma once

namespace weaktr {

// Threads that work on one image together.
class Team {
 public:
  explicit Team(int size);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;
  int size() const { return size_; }
  // Calls job(context, part) for part = 0 ... size - 1, each on its own thread; waits for all.
  void run(void (*job)(const void* context, int part), const void* context);

 private:
  struct Threads;
  int size_;
  Threads* threads_ = nullptr;  // none where size is 1
};

}  // namespace weaktr
