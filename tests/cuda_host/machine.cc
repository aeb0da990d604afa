// See machine.h. One launch at a time: the state is global.
#include "machine.h"

#include <dlfcn.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace machine {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t STACK = 256 << 10;
#else
constexpr size_t STACK = 64 << 10;
#endif
constexpr int WARP = 32;

// ---- what is known of memory: for each 4 bytes, who used them last

// Meetings are counted by thread. Of two accesses, the later one is ordered after the earlier one if its thread has met
// more often than the other had: then there was a meeting of both in between. Threads of a block meet at its barriers,
// those of two blocks of a domain (a cluster, a group) at the wide ones only, others never.
struct Access {
  uint32_t thread;  // number in the launch from 1, 0 for none
  uint32_t block_meetings, wide_meetings;
  int32_t code;  // from the start of the kernel's library
};

struct Word {
  Access write;
  // Since then: the last read, the last by another thread than that, the last by another block. A thread can only be running
  // when it has met as often as all others of its domain, so older reads are no more recent in meetings.
  Access read, other_thread, other_block;
  uint32_t copying;  // the thread that has started a copy to here and not waited for it, or 0
};

struct Region {
  const char *begin, *end;
  Word* words;  // of global memory; zero pages until they are used
};

// ---- threads and blocks

struct Block;

struct Copy {
  char* shared;
  const char* global;
  int bytes, batch;
};

struct Thread {
  ucontext_t context;
  char* stack = nullptr;
  void* asan = nullptr;
  Indices indices;
  uint32_t number;  // in the launch, from 1
  Block* block;
  bool ended = false;
  uint32_t block_meetings = 0, wide_meetings = 0;
  const char* waits = "";  // for what, where
  Place place = {"", 0};
  float lane_value, lane_result;
  int lane_mask, lane_from;
  unsigned lane_ballot;
  std::vector<Copy> copies;
  int batch = 0;
};

// Where threads wait for one another.
struct Meeting {
  int waiting = 0;
  Place place = {"", 0};
};

// An mbarrier (PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier").
struct Mbarrier {
  int64_t byte;  // in the block's shared memory
  uint32_t phase = 0;
  int arrivals = 1;   // that the phase still waits for
  int64_t bytes = 0;  // the tx-count: expected less delivered, negative where deliveries come before they are expected
  std::vector<Thread*> waiting;
};

// What store_async has sent and has not arrived.
struct Delivery {
  Block* block;
  int64_t byte, barrier;
  uint32_t values[4];
};

struct Domain {
  std::vector<Block*> blocks;
  Meeting meeting;
  unsigned* counter = nullptr;  // of a group barrier
  unsigned rounds = 0, arrivals = 0;  // arrivals: of blocks
  std::vector<Delivery> deliveries;   // on their way
};

struct Block {
  Dim index;
  char* shared = nullptr;
  std::vector<Word> words;
  std::vector<Thread> threads;
  std::vector<Meeting> warps;
  Meeting meeting;
  Domain* domain = nullptr;
  std::vector<std::unique_ptr<Mbarrier>> mbarriers;
  uint32_t stores_end = 0;  // one more than the wide meetings of the last store into it from another block
};

struct Running {
  void (*kernel)(void**);
  void** arguments;
  const machine_launch* launch;
  machine_error* error;
  std::vector<Region> regions;
  std::vector<std::unique_ptr<Block>> blocks;  // alive
  std::vector<Domain> domains;
  std::vector<Thread*> ready;
  int alive = 0;
  bool failed = false;
  uint64_t random = 0;
  char* stacks = nullptr;
  size_t stacks_size = 0;
  const char* code = nullptr;  // where the kernel's library starts
};

Running* run = nullptr;
Thread* current = nullptr;
ucontext_t scheduler;
void* scheduler_asan = nullptr;
const void* scheduler_stack = nullptr;
size_t scheduler_stack_size = 0;

unsigned draw(unsigned below) {  // xorshift64*
  run->random ^= run->random >> 12, run->random ^= run->random << 25, run->random ^= run->random >> 27;
  return static_cast<unsigned>((run->random * 0x2545F4914F6CDD1Dull) >> 33) % below;
}

// ---- switching

void start_switch(void** asan, const void* stack, size_t size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(asan, stack, size);
#else
  (void)asan, (void)stack, (void)size;
#endif
}

void finish_switch(void* asan, const void** stack = nullptr, size_t* size = nullptr) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(asan, stack, size);
#else
  (void)asan, (void)stack, (void)size;
#endif
}

void deliver_some();

// From this thread, which is waiting or has ended, to one that is ready, or to the scheduler where none is or all is lost.
void switch_away() {
  Thread* from = current;
  void** asan = from->ended ? nullptr : &from->asan;
  if (!run->failed) deliver_some();
  if (run->failed || run->ready.empty()) {
    current = nullptr;
    start_switch(asan, scheduler_stack, scheduler_stack_size);
    swapcontext(&from->context, &scheduler);
  } else {
    std::swap(run->ready[draw(static_cast<unsigned>(run->ready.size()))], run->ready.back());
    Thread* to = run->ready.back();
    run->ready.pop_back();
    if (to == from) return;
    current = to;
    start_switch(asan, to->stack, STACK);
    swapcontext(&from->context, &to->context);
  }
  finish_switch(from->asan);
}

uint64_t offset(int32_t code) { return code ? static_cast<uint64_t>(code) : 0; }

// Ends the launch with an error. Does not return to a thread.
__attribute__((format(printf, 3, 4))) void fail(int32_t access, int32_t other, const char* format, ...) {
  run->failed = true;
  va_list values;
  va_start(values, format);
  vsnprintf(run->error->message, sizeof run->error->message, format, values);
  va_end(values);
  run->error->access = offset(access);
  run->error->other_access = offset(other);
  if (current) switch_away();
}

// ---- words for messages

struct Name {
  char text[64];
  explicit Name(uint32_t number) {
    const int threads = run->launch->block, x = run->launch->grid[0], y = run->launch->grid[1];
    const int block = static_cast<int>(number - 1) / threads;
    snprintf(text, sizeof text, "thread %d of block (%d, %d, %d)", static_cast<int>(number - 1) % threads, block % x,
             block / x % y, block / x / y);
  }
};

// ---- memory

uint32_t block_of(uint32_t thread) { return (thread - 1) / static_cast<uint32_t>(run->launch->block); }

Block* alive(uint32_t thread) {  // null where it has ended and gone
  for (auto& block : run->blocks)
    if (block_of(block->threads[0].number) == block_of(thread)) return block.get();
  return nullptr;
}

bool ordered(const Access& before, const Thread& now) {
  if (before.thread == 0 || before.thread == now.number) return true;
  if (block_of(before.thread) == block_of(now.number)) return now.block_meetings > before.block_meetings;
  const Block* block = alive(before.thread);
  return block && block->domain == now.block->domain && now.wide_meetings > before.wide_meetings;
}

void check_order(const Access& before, const char* did, const Thread& now, const char* does, int32_t code) {
  if (!ordered(before, now))
    fail(code, before.code, "%s %s what %s %s, with no barrier between", Name(now.number).text, does,
         Name(before.thread).text, did);
}

void use(Word& word, bool write, bool is_global, bool through_l1, int32_t code) {
  const Thread& now = *current;
  const Access access = {now.number, now.block_meetings, now.wide_meetings, code};
  if (word.copying)
    fail(code, word.write.code, "%s %s shared memory that a copy of %s is on its way to", Name(now.number).text,
         write ? "writes" : "reads", Name(word.copying).text);
  check_order(word.write, "wrote", now, write ? "writes" : "reads", code);
  if (write) {
    check_order(word.read, "read", now, "writes", code);
    check_order(word.other_thread, "read", now, "writes", code);
    check_order(word.other_block, "read", now, "writes", code);
    word.write = access;
    word.read = word.other_thread = word.other_block = {};
    return;
  }
  if (!is_global && word.write.thread == 0)
    fail(code, 0, "%s reads shared memory that nobody wrote", Name(now.number).text);
  if (is_global && through_l1 && word.write.thread && block_of(word.write.thread) != block_of(now.number))
    fail(code, word.write.code, "%s reads through L1 what %s wrote", Name(now.number).text, Name(word.write.thread).text);
  if (word.read.thread != access.thread) {
    word.other_thread = word.read;
    if (word.read.thread && block_of(word.read.thread) != block_of(access.thread)) word.other_block = word.read;
  }
  word.read = access;
}

int32_t code_of(void* address) { return static_cast<int32_t>(static_cast<const char*>(address) - run->code); }

// The words at an address that this thread may use, or null after an error. Those of its own stack are null too.
Word* words_at(const char* address, size_t size, bool& is_global, int32_t code) {
  if (address >= run->stacks && address < run->stacks + run->stacks_size) return nullptr;
  Block& block = *current->block;
  if (address >= block.shared && address + size <= block.shared + run->launch->shared) {
    is_global = false;
    return &block.words[(address - block.shared) / 4];
  }
  auto region = std::upper_bound(run->regions.begin(), run->regions.end(), address,
                                 [](const char* at, const Region& r) { return at < r.begin; });
  if (region != run->regions.begin() && (--region, address + size <= region->end)) {
    is_global = true;
    return region->words + (address - region->begin) / 4;
  }
  for (auto& other : run->blocks)
    if (address >= other->shared && address < other->shared + run->launch->shared) {
      fail(code, 0, "%s uses the shared memory of another block as its own", Name(current->number).text);
      return nullptr;
    }
  const int64_t past = address - block.shared;
  if (past >= -4096 && past < run->launch->shared + 4096)
    fail(code, 0, "%s uses byte %lld of the block's %lld bytes of shared memory", Name(current->number).text,
         static_cast<long long>(past), static_cast<long long>(run->launch->shared));
  else
    fail(code, 0, "%s uses %zu bytes outside the arrays of the launch", Name(current->number).text, size);
  return nullptr;
}

void access(const void* address, size_t size, bool write, void* code) {
  if (!current) return;
  bool is_global;
  const int32_t place = code_of(code);
  Word* words = words_at(static_cast<const char*>(address), size, is_global, place);
  if (!words) return;
  if (size <= 16 && (size & (size - 1)) == 0 && reinterpret_cast<uintptr_t>(address) % size)
    fail(place, 0, "%s uses %zu bytes at an address that is no multiple of it", Name(current->number).text, size);
  for (size_t i = 0; i < (size + 3) / 4; i++) use(words[i], write, is_global, true, place);
}

// ---- meeting

bool same(Place a, Place b) { return a.line == b.line && strcmp(a.file, b.file) == 0; }

// One more thread waits, `what` says for whom. True for the last one, who lets the others go on.
bool arrive(Meeting& meeting, int expected, const char* what, Place place) {
  if (meeting.waiting && !same(meeting.place, place))
    fail(0, 0, "%s waits for %s at %s:%d, others at %s:%d", Name(current->number).text, what, place.file, place.line,
         meeting.place.file, meeting.place.line);
  meeting.place = place;
  current->waits = what;
  current->place = place;
  if (++meeting.waiting < expected) return false;
  meeting.waiting = 0;
  return true;
}

void let_go(Thread& thread) {
  thread.waits = "";
  run->ready.push_back(&thread);
}

void wide_barrier(const char* what, Place place) {
  Domain& domain = *current->block->domain;
  if (arrive(domain.meeting, static_cast<int>(domain.blocks.size()) * run->launch->block, what, place)) {
    domain.rounds++;
    for (Block* block : domain.blocks)
      for (Thread& thread : block->threads) {
        if (thread.ended)
          fail(0, 0, "%s has ended and is waited for at %s:%d", Name(thread.number).text, place.file, place.line);
        thread.block_meetings++, thread.wide_meetings++;
        let_go(thread);
      }
  }
  switch_away();
}

// ---- deliveries

Mbarrier* find_mbarrier(Block& block, int64_t byte) {
  for (auto& barrier : block.mbarriers)
    if (barrier->byte == byte) return barrier.get();
  return nullptr;
}

void end_phase_if_complete(Mbarrier& barrier) {
  if (barrier.arrivals || barrier.bytes) return;
  barrier.phase++;
  barrier.arrivals = 1;
  for (Thread* thread : barrier.waiting) let_go(*thread);
  barrier.waiting.clear();
}

// One that is on its way, whichever, arrives.
void deliver(std::vector<Delivery>& deliveries) {
  std::swap(deliveries[draw(static_cast<unsigned>(deliveries.size()))], deliveries.back());
  const Delivery delivery = deliveries.back();
  deliveries.pop_back();
  Mbarrier* barrier = find_mbarrier(*delivery.block, delivery.barrier);
  memcpy(delivery.block->shared + delivery.byte, delivery.values, sizeof delivery.values);
#if !defined(__SANITIZE_ADDRESS__)
  for (int i = 0; i < 4; i++) delivery.block->words[static_cast<size_t>(delivery.byte) / 4 + i] = Word{{1, 0, 0, 0}, {}, {}, {}, 0};
#endif
  barrier->bytes -= sizeof delivery.values;
  end_phase_if_complete(*barrier);
}

// Some of those on their way arrive; where no thread can run, as many as it takes until one can.
void deliver_some() {
  auto& deliveries = run->domains.front().deliveries;
  while (!deliveries.empty() && draw(4) == 0) deliver(deliveries);
  while (!deliveries.empty() && run->ready.empty()) deliver(deliveries);
}

// The lanes of the warp bring a value each and get `result` computed for all.
template <class Result>
void warp_meeting(const char* what, Place place, Result result) {
  Block& block = *current->block;
  const int warp = static_cast<int>(current->indices.thread.x) / WARP;
  if (arrive(block.warps[warp], WARP, what, place)) {
    Thread* lanes = &block.threads[warp * WARP];
    for (int lane = 0; lane < WARP; lane++) {
      result(lanes, lane);
      let_go(lanes[lane]);
    }
  }
  switch_away();
}

// ---- a thread's life

void live() {
  finish_switch(nullptr, scheduler_stack ? nullptr : &scheduler_stack, scheduler_stack ? nullptr : &scheduler_stack_size);
  run->kernel(run->arguments);
  if (!current->copies.empty()) fail(0, 0, "%s ended with copies on their way", Name(current->number).text);
  run->alive--;
  current->ended = true;
  switch_away();
}

std::unique_ptr<Block> make_block(int x, int y, int z, char* stacks) {
  const machine_launch& launch = *run->launch;
  auto block = std::make_unique<Block>();
  block->index = {static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z)};
  block->shared = static_cast<char*>(aligned_alloc(16, (static_cast<size_t>(launch.shared) + 15) / 16 * 16 + 16));
  memset(block->shared, 0xff, static_cast<size_t>(launch.shared));  // NaN
#if !defined(__SANITIZE_ADDRESS__)
  block->words.resize(static_cast<size_t>(launch.shared + 3) / 4);
#endif
  block->threads = std::vector<Thread>(static_cast<size_t>(launch.block));
  block->warps.resize(static_cast<size_t>(launch.block) / WARP);
  const uint32_t first = ((z * launch.grid[1] + y) * launch.grid[0] + x) * launch.block + 1;
  for (int i = 0; i < launch.block; i++) {
    Thread& thread = block->threads[i];
    thread.number = first + static_cast<uint32_t>(i);
    thread.block = block.get();
    thread.stack = stacks + STACK * i;
    thread.indices = {{static_cast<unsigned>(i), 0, 0},
                      block->index,
                      {static_cast<unsigned>(launch.block), 1, 1},
                      {static_cast<unsigned>(launch.grid[0]), static_cast<unsigned>(launch.grid[1]),
                       static_cast<unsigned>(launch.grid[2])}};
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack;
    thread.context.uc_stack.ss_size = STACK;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, live, 0);
    run->ready.push_back(&thread);
  }
  run->alive += launch.block;
  return block;
}

void report_stuck() {
  char text[900] = "";
  size_t used = 0;
  struct Group {
    const char* waits;
    Place place;
    int count;
  };
  std::vector<Group> groups;
  for (auto& block : run->blocks)
    for (Thread& thread : block->threads) {
      const char* waits = thread.ended ? "the end" : thread.waits;
      auto group = std::find_if(groups.begin(), groups.end(), [&](const Group& g) {
        return strcmp(g.waits, waits) == 0 && (thread.ended || same(g.place, thread.place));
      });
      if (group == groups.end())
        groups.push_back({waits, thread.place, 1});
      else
        group->count++;
    }
  for (const Group& group : groups)
    if (used < sizeof text)
      used += static_cast<size_t>(strcmp(group.waits, "the end") == 0
                                      ? snprintf(text + used, sizeof text - used, "; %d have ended", group.count)
                                      : snprintf(text + used, sizeof text - used, "; %d wait for %s at %s:%d", group.count,
                                                 group.waits, group.place.file, group.place.line));
  fail(0, 0, "threads wait for ever%s", text);
}

// Runs the blocks that have been made to their end.
void run_blocks() {
  if (!run->ready.empty()) {
    std::swap(run->ready[draw(static_cast<unsigned>(run->ready.size()))], run->ready.back());
    current = run->ready.back();
    run->ready.pop_back();
    scheduler_stack = nullptr;
    start_switch(&scheduler_asan, current->stack, STACK);
    swapcontext(&scheduler, &current->context);
    finish_switch(scheduler_asan);
  }
  if (!run->failed && run->alive) report_stuck();
  for (auto& block : run->blocks)
    if (!run->failed && block->stores_end && block->threads[0].wide_meetings < block->stores_end)
      fail(0, 0, "block (%u, %u, %u) may have ended before another block stored into its shared memory", block->index.x,
           block->index.y, block->index.z);
  for (auto& block : run->blocks) free(block->shared);
  run->blocks.clear();
  run->domains.clear();
}

}  // namespace

Indices here() { return current->indices; }

char* shared() { return current->block->shared; }

void block_barrier(Place place) {
  Block& block = *current->block;
  if (arrive(block.meeting, run->launch->block, "the block", place))
    for (Thread& thread : block.threads) {
      thread.block_meetings++;
      let_go(thread);
    }
  switch_away();
}

void cluster_barrier(Place place) {
  if (run->launch->cooperative) fail(0, 0, "a cluster barrier where there is no cluster, at %s:%d", place.file, place.line);
  wide_barrier("the cluster", place);
}

void group_barrier(unsigned* counter, unsigned blocks, unsigned round, Place place) {
  Domain& domain = *current->block->domain;
  if (!run->launch->cooperative)
    fail(0, 0, "a group barrier in a launch that is not cooperative, at %s:%d", place.file, place.line);
  if (domain.rounds == 0 && !domain.counter) {
    domain.counter = counter;
    for (Domain& other : run->domains)
      if (&other != &domain && other.counter == counter)
        fail(0, 0, "two groups with one counter, at %s:%d", place.file, place.line);
  }
  if (counter != domain.counter || blocks != domain.blocks.size() || round != domain.rounds + 1)
    fail(0, 0, "group_barrier(counter, %u, %u) at %s:%d, where %zu blocks meet for the %u. time%s", blocks, round, place.file,
         place.line, domain.blocks.size(), domain.rounds + 1, counter == domain.counter ? "" : " at another counter");
  if (current->indices.thread.x == 0) {
    if (*counter != domain.arrivals)
      fail(0, 0, "the counter of a group is %u after %u arrivals: it was not 0 at first", *counter, domain.arrivals);
    *counter = ++domain.arrivals;
  }
  wide_barrier("the group", place);
}

float exchange_lanes(float value, int mask, Place place) {
  Thread* self = current;  // of a function that gives control away, the compiler may keep an old `current`
  self->lane_value = value;
  self->lane_mask = mask;
  warp_meeting("the warp", place, [](Thread* lanes, int lane) {
    lanes[lane].lane_result = lanes[(lane ^ lanes[lane].lane_mask) % WARP].lane_value;
  });
  return self->lane_result;
}

unsigned ballot(bool predicate, Place place) {
  Thread* self = current;
  self->lane_value = predicate;
  warp_meeting("the warp", place, [](Thread* lanes, int lane) {
    unsigned bits = 0;
    for (int i = 0; i < WARP; i++) bits |= static_cast<unsigned>(lanes[i].lane_value != 0) << i;
    lanes[lane].lane_ballot = bits;
  });
  return self->lane_ballot;
}

float lane_value(float value, int lane, Place place) {
  Thread* self = current;
  self->lane_value = value;
  self->lane_from = lane;
  if (lane < 0 || lane >= WARP)
    fail(0, 0, "lane_value of lane %d, needs one from 0 to 31, at %s:%d", lane, place.file, place.line);
  warp_meeting("the warp", place,
               [](Thread* lanes, int lane) { lanes[lane].lane_result = lanes[lanes[lane].lane_from].lane_value; });
  return self->lane_result;
}

// A copy may read and write at any time between its start and the wait. Both ends are checked, the bytes move at the wait.
static void use_copy(const Copy& copy, int32_t code, bool lands) {
#if defined(__SANITIZE_ADDRESS__)
  (void)copy, (void)code, (void)lands;
#else
  bool is_global;
  Word* from = words_at(copy.global, static_cast<size_t>(copy.bytes), is_global, code);
  if (!from || !is_global) fail(code, 0, "%s copies from what is not global memory", Name(current->number).text);
  Word* to = words_at(copy.shared, static_cast<size_t>(copy.bytes), is_global, code);
  if (!to || is_global) fail(code, 0, "%s copies to what is not shared memory", Name(current->number).text);
  for (int i = 0; i < copy.bytes / 4; i++) {
    use(from[i], false, true, false, code);
    if (lands) to[i].copying = 0;
    use(to[i], true, false, false, code);
    if (!lands) to[i].copying = current->number;
  }
#endif
}

void copy_start(void* shared, const void* global, int bytes) {
  const int32_t code = code_of(__builtin_return_address(0));
  if (reinterpret_cast<uintptr_t>(shared) % bytes || reinterpret_cast<uintptr_t>(global) % bytes)
    fail(code, 0, "%s copies %d bytes at an address that is no multiple of it", Name(current->number).text, bytes);
  const Copy copy = {static_cast<char*>(shared), static_cast<const char*>(global), bytes, current->batch};
  use_copy(copy, code, false);
  current->copies.push_back(copy);
}

void copy_close_batch() { current->batch++; }

void copy_wait(int open) {
  const int32_t code = code_of(__builtin_return_address(0));
  auto& copies = current->copies;
  auto rest = copies.begin();
  for (; rest != copies.end() && rest->batch < current->batch - open; ++rest) {
    memcpy(rest->shared, rest->global, static_cast<size_t>(rest->bytes));
    use_copy(*rest, code, true);
  }
  copies.erase(copies.begin(), rest);
}

void store_to_block(float* local, int rank, float value) {
  const int32_t code = code_of(__builtin_return_address(0));
  Domain& domain = *current->block->domain;
  const int64_t at = reinterpret_cast<char*>(local) - current->block->shared;
  if (rank < 0 || rank >= static_cast<int>(domain.blocks.size()))
    fail(code, 0, "%s stores into block %d of a cluster of %zu", Name(current->number).text, rank, domain.blocks.size());
  if (at < 0 || at + 4 > run->launch->shared)
    fail(code, 0, "%s stores at byte %lld of a block's %lld bytes of shared memory", Name(current->number).text,
         static_cast<long long>(at), static_cast<long long>(run->launch->shared));
  Block& block = *domain.blocks[rank];
  if (&block != current->block) {
    if (current->wide_meetings == 0)
      fail(code, 0, "%s stores into the shared memory of a block that may not have started", Name(current->number).text);
    block.stores_end = std::max(block.stores_end, current->wide_meetings + 1);
  }
#if !defined(__SANITIZE_ADDRESS__)
  use(block.words[static_cast<size_t>(at) / 4], true, false, false, code);
#endif
  memcpy(block.shared + at, &value, sizeof value);
}

Remote remote(const void* local, int rank) {
  const int64_t byte = static_cast<const char*>(local) - current->block->shared;
  return {rank, byte};
}

void store_to_block(Remote to, const void* values) {
  float four[4];
  memcpy(four, values, sizeof four);
  for (int i = 0; i < 4; i++) store_to_block(reinterpret_cast<float*>(current->block->shared + to.byte) + i, to.rank, four[i]);
}

void mbarrier_init(uint64_t* barrier) {
  Block& block = *current->block;
  block.mbarriers.push_back(std::make_unique<Mbarrier>());
  block.mbarriers.back()->byte = reinterpret_cast<char*>(barrier) - block.shared;
}

void mbarrier_init_fence() {}

void mbarrier_expect(uint64_t* barrier, int bytes) {
  Mbarrier& known = *find_mbarrier(*current->block, reinterpret_cast<char*>(barrier) - current->block->shared);
  known.arrivals--;
  known.bytes += bytes;
  end_phase_if_complete(known);
}

void mbarrier_wait(uint64_t* barrier, int parity, Place place) {
  Thread* self = current;
  Mbarrier& known = *find_mbarrier(*self->block, reinterpret_cast<char*>(barrier) - self->block->shared);
  while (static_cast<int>(known.phase & 1) == parity) {
    self->waits = "an mbarrier";
    self->place = place;
    known.waiting.push_back(self);
    switch_away();
  }
}

void store_async(Remote to, Remote barrier, const void* values) {
  Domain& domain = *current->block->domain;
  Delivery delivery = {domain.blocks[to.rank], to.byte, barrier.byte, {}};
  memcpy(delivery.values, values, sizeof delivery.values);
  domain.deliveries.push_back(delivery);
}

}  // namespace machine

// ---- launching

using namespace machine;

int machine_run(void (*kernel)(void**), void** arguments, const machine_launch* launch, machine_error* error) {
  Running state;
  run = &state;
  state.kernel = kernel, state.arguments = arguments, state.launch = launch, state.error = error;
  state.random = 0x9E3779B97F4A7C15ull ^ launch->seed;
  Dl_info library;
  dladdr(reinterpret_cast<void*>(kernel), &library);
  state.code = static_cast<const char*>(library.dli_fbase);

  // Arrays that overlap or touch are one region.
  std::vector<std::pair<uint64_t, uint64_t>> arrays;
  for (int i = 0; i < launch->regions; i++) arrays.push_back({launch->begins[i], launch->begins[i] + launch->sizes[i]});
  std::sort(arrays.begin(), arrays.end());
  for (auto& array : arrays) {
    const char *begin = reinterpret_cast<const char*>(array.first), *end = reinterpret_cast<const char*>(array.second);
    if (!state.regions.empty() && begin <= state.regions.back().end)
      state.regions.back().end = std::max(state.regions.back().end, end);
    else
      state.regions.push_back({begin, end, nullptr});
  }
  for (Region& region : state.regions)
    region.words = static_cast<Word*>(calloc(static_cast<size_t>(region.end - region.begin + 3) / 4, sizeof(Word)));

  const int x = launch->grid[0], y = launch->grid[1], z = launch->grid[2];
  const int together = launch->cooperative ? x * y * z : launch->cluster;
  state.stacks_size = STACK * static_cast<size_t>(launch->block) * together;
  state.stacks = static_cast<char*>(mmap(nullptr, state.stacks_size, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (state.stacks == MAP_FAILED) {
    snprintf(error->message, sizeof error->message, "no memory for the stacks of %d blocks", together);
    state.failed = true;
  }
  std::vector<int> order(static_cast<size_t>(x) * y * z / together);
  for (size_t i = 0; i < order.size(); i++) order[i] = static_cast<int>(i);
  for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[draw(static_cast<unsigned>(i))]);
  for (int set : order) {
    if (state.failed) break;
    state.domains.resize(launch->cooperative ? static_cast<size_t>(y) * z : 1);
    for (int i = 0; i < together; i++) {
      const int number = set * together + i;
      auto block = make_block(number % x, number / x % y, number / x / y,
                              state.stacks + STACK * static_cast<size_t>(launch->block) * i);
      block->domain = &state.domains[launch->cooperative ? static_cast<size_t>(number / x) : 0];
      block->domain->blocks.push_back(block.get());
      state.blocks.push_back(std::move(block));
    }
    run_blocks();
  }
  if (state.stacks != MAP_FAILED) munmap(state.stacks, state.stacks_size);
  for (Region& region : state.regions) free(region.words);
  run = nullptr;
  current = nullptr;
  return state.failed;
}

// ---- what -fsanitize=thread calls

#if !defined(__SANITIZE_ADDRESS__)
extern "C" {
#define ACCESS(name, size, write) \
  void __tsan_##name(void* address) { machine::access(address, size, write, __builtin_return_address(0)); }
#define ACCESSES(size) \
  ACCESS(read##size, size, false) ACCESS(write##size, size, true)
#define UNALIGNED(size) \
  ACCESS(unaligned_read##size, size, false) ACCESS(unaligned_write##size, size, true)
ACCESSES(1) ACCESSES(2) ACCESSES(4) ACCESSES(8) ACCESSES(16)
UNALIGNED(2) UNALIGNED(4) UNALIGNED(8) UNALIGNED(16)
void __tsan_read_range(void* address, size_t size) { machine::access(address, size, false, __builtin_return_address(0)); }
void __tsan_write_range(void* address, size_t size) { machine::access(address, size, true, __builtin_return_address(0)); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
}
#endif
