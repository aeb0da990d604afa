// See emulator.h. One launch at a time: the state is global.
#include "emulator.h"

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

#include "clocks.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t STACK = 256 << 10;
constexpr int64_t AROUND = 0;  // ASan's own is there
#else
constexpr size_t STACK = 64 << 10;
constexpr int64_t AROUND = 4096;  // guard bytes before and after a block's shared memory
#endif
constexpr int64_t MOST_BYTES = (1 << 20) - 1;  // of an mbarrier's tx-count, above and below 0

// ---- the record of memory: the last accesses to each word of 4 bytes

// Each thread counts its meetings, the barriers that it has passed. The later of two accesses is ordered after the earlier one if
// its thread has met more often than the other thread had at its access: then both have met in between. Threads of a block meet
// at its barriers. Threads of two blocks in a domain (a cluster, a group) meet only at the wide barriers, others never.
struct Access {
  uint32_t thread;  // number in the launch, from 1; 0 for none
  uint32_t block_meetings, wide_meetings;
  int32_t code;  // from the start of the kernel's library
};

// Meetings are not enough for st.async (PTX ISA, "Data Movement and Conversion Instructions: st.async"), since there need not be
// a barrier between two uses of a word. If there are mbarriers, vector clocks keep a second order:
//   - at a barrier a thread learns everything that all its threads know; at a shuffle or a vote, everything that its warp knows;
//   - a delivery brings to its mbarrier everything that its sender knew;
//   - a thread that has waited for a phase of an mbarrier knows everything that came to the mbarrier in that phase and before.
// A read that is known has happened, since its value, or one computed from it, has arrived. A delivery that is known to have been
// waited for has arrived. A write that is known has happened if its writer has met others at a barrier since, and that is known
// too. A later delivery may overwrite all of these.
//
// But the second order does not say which data are visible. A shuffle orders no memory. The complete-tx of a delivery releases
// the bytes of that delivery, not the sender's earlier writes (PTX ISA, "Memory Consistency Model"). The order that an mbarrier's
// arrive and wait make between threads of a block is left out, since no kernel here needs it. So for plain reads and writes of
// words that were plainly written or read, only meetings count. A thread can read delivered data if it has waited for their
// phase, or has met a thread at a barrier that has.
//
// A thread that waits for a parity counts as having waited for the first phase that it can mean, after the phases that it has
// waited for before. If a later phase has ended too, that is chance: it would not be so in another order of the threads.
struct Word {
  Access write;
  // The last reads since then: of all, by a thread other than that one, by another block. A running thread has met as often as
  // all others of its domain, so older reads are not more recent in meetings.
  Access read, other_thread, other_block;
  uint32_t copying;  // the thread that has started a copy to this word and has not waited for it; or 0; or MBARRIER
  // For shared memory. After a delivery: its mbarrier's number + 1, and the phase. After a plain write: 0, and the writer's
  // clock.
  uint32_t mbarrier, when;
  // A list in Running::reads of all reads since then. It is kept only if the block has an mbarrier. A delivery comes after the
  // cluster has met once more, so all threads know of earlier reads.
  uint32_t reads;
};

constexpr uint32_t MBARRIER = 0xffffffff;

// The lanes of a warp that have read a word at one time of their clocks.
struct Read {
  uint32_t warp, lanes, clock;
  int32_t code;
  uint32_t next;  // 0 for none
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
  View view;
  std::vector<uint32_t> met;  // its clock at each barrier
  Clocks phases;              // how many phases of each mbarrier it may read the deliveries of
  const char* waits = "";     // the thing that it waits for
  Location place = {"", 0};
  float lane_value, lane_result;
  int lane_mask, lane_from;
  unsigned lane_ballot;
  std::vector<Copy> copies;
  int batch = 0;
};

// A point where threads wait for one another.
struct Meeting {
  int waiting = 0;
  Location place = {"", 0};
};

// PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier". A phase ends when nothing is left to arrive
// and the tx-count is 0.
struct Mbarrier {
  Block* block;
  int64_t byte;     // in the block's shared memory
  uint32_t number;  // in the domain
  Access init;
  bool fenced = false;  // mbarrier_init_fence() was called before the cluster met
  uint32_t phase = 0;
  bool armed = false;  // this phase has its expected bytes and the one arrival that it needs
  uint32_t armings = 0;
  int32_t armed_code = 0;
  int64_t bytes = 0;  // the tx-count: expected minus delivered; negative if deliveries come before they are expected
  Clocks clocks;      // everything that the senders of its deliveries knew
  std::vector<std::shared_ptr<const Clocks>> gathered;  // clocks of this phase that it contains already
  std::vector<std::shared_ptr<const Clocks>> ends;      // its clocks at the end of each phase
  struct Joined {
    uint32_t phases;
    std::shared_ptr<const Clocks> before, after;
  };
  std::vector<Joined> joined;                // a cache for waiting threads, most of which know the same before and after
  uint32_t last_sender = 0, last_phase = 0;  // of the last delivery
  int32_t last_code = 0;
  std::vector<Thread*> waiting;
};

// Data from store_async that have not arrived.
struct Delivery {
  Mbarrier* mbarrier;
  int64_t byte;
  uint32_t values[4];
  Access sender;
  View view;
};

struct Domain {
  std::vector<Block*> blocks;
  Meeting meeting;
  unsigned* counter = nullptr;        // of a group barrier
  unsigned rounds = 0, arrivals = 0;  // arrivals: of blocks
  uint32_t threads = 0;
  std::vector<Mbarrier*> mbarriers;
  std::vector<Delivery> deliveries;  // on their way
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
  uint32_t stores_end = 0;  // the wide meetings of the last store into it from another block, plus one
};

struct Running {
  void (*kernel)(void**);
  void** arguments;
  const emulator_launch* launch;
  emulator_error* error;
  std::vector<Region> regions;
  std::vector<std::unique_ptr<Block>> blocks;  // alive
  std::vector<Domain> domains;
  std::vector<Thread*> ready;
  std::vector<Read> reads = std::vector<Read>(1);
  uint32_t free_reads = 0;  // a list too
  unsigned patience = 0;    // of deliveries, see deliver_some
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

// Switches from this thread, which waits or has ended, to one that is ready; to the scheduler if none is ready or the launch
// failed.
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

// Ends the launch with an error. If a thread calls it, it does not return.
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

struct NameOf {  // an mbarrier
  char text[96];
  explicit NameOf(const Mbarrier& mbarrier) {
    const Dim& block = mbarrier.block->index;
    snprintf(text, sizeof text, "the mbarrier at byte %lld of block (%u, %u, %u)", static_cast<long long>(mbarrier.byte), block.x,
             block.y, block.z);
  }
};

// ---- memory

uint32_t block_of(uint32_t thread) { return (thread - 1) / static_cast<uint32_t>(run->launch->block); }

Block* alive(uint32_t thread) {  // null if the block has ended and is gone
  for (auto& block : run->blocks)
    if (block_of(block->threads[0].number) == block_of(thread)) return block.get();
  return nullptr;
}

Access access_now(int32_t code) { return {current->number, current->block_meetings, current->wide_meetings, code}; }

bool ordered(const Access& before, const Access& now, const Domain* domain) {
  if (before.thread == 0 || before.thread == now.thread) return true;
  if (block_of(before.thread) == block_of(now.thread)) return now.block_meetings > before.block_meetings;
  const Block* block = alive(before.thread);
  return block && block->domain == domain && now.wide_meetings > before.wide_meetings;
}

void check_order(const Access& before, const char* did, const Access& now, const char* does) {
  if (!ordered(before, now, current->block->domain))
    fail(now.code, before.code, "%s %s data that %s %s, with no barrier between", Name(now.thread).text, does,
         Name(before.thread).text, did);
}

// The number of an mbarrier among the clocks of its domain.
uint32_t clock_of(const Domain& domain, uint32_t mbarrier) { return domain.threads + mbarrier; }

void remember_read(Word& word, int32_t code) {
  const View& view = current->view;
  const uint32_t warp = view.thread / WARP, lane = 1u << view.thread % WARP;
  uint32_t* link = &word.reads;
  for (; *link; link = &run->reads[*link].next) {
    Read& read = run->reads[*link];
    if (read.warp != warp) continue;
    if (read.clock == view.own) {
      read.lanes |= lane;
      return;
    }
    if (read.clock <= view.lanes || read.lanes == lane) {  // all who will know this read know that one
      read.lanes = lane, read.clock = view.own, read.code = code;
      return;
    }
  }
  uint32_t number = run->free_reads;
  if (number) run->free_reads = run->reads[number].next;
  else number = static_cast<uint32_t>(run->reads.size());
  *link = number;
  if (number == run->reads.size()) run->reads.emplace_back();  // which may move `link`
  run->reads[number] = {warp, lane, view.own, code, 0};
}

void forget_reads(Word& word) {
  while (word.reads) {
    Read& read = run->reads[word.reads];
    const uint32_t next = read.next;
    read.next = run->free_reads;
    run->free_reads = word.reads;
    word.reads = next;
  }
}

// The error of a read of shared memory that was not written.
void fail_unwritten(const Word& word, int32_t code) {
  const Block& block = *current->block;
  for (const Delivery& delivery : block.domain->deliveries) {
    const int64_t first = delivery.byte / 4, at = &word - block.words.data();
    if (delivery.mbarrier->block == &block && at >= first && at < first + 4)
      fail(code, delivery.sender.code, "%s reads data that a delivery from %s has not yet brought", Name(current->number).text,
           Name(delivery.sender.thread).text);
  }
  fail(code, 0, "%s reads shared memory that was never written", Name(current->number).text);
}

void use(Word& word, bool write, bool is_global, bool through_l1, int32_t code) {
  const Access now = access_now(code);
  if (word.copying == MBARRIER)
    fail(code, 0, "%s %s the bytes of an mbarrier", Name(now.thread).text, write ? "writes" : "reads");
  if (word.copying)
    fail(code, word.write.code, "%s %s shared memory that a copy of %s is on its way to", Name(now.thread).text,
         write ? "writes" : "reads", Name(word.copying).text);
  if (word.mbarrier) {
    const Domain& domain = *current->block->domain;
    const uint32_t number = word.mbarrier - 1;
    if ((write ? current->view.knows(clock_of(domain, number)) : known(current->phases, number)) <= word.when)
      fail(code, word.write.code, "%s %s data that a delivery from %s has brought, and has not waited for phase %u of %s",
           Name(now.thread).text, write ? "overwrites" : "reads", Name(word.write.thread).text, word.when,
           NameOf(*domain.mbarriers[number]).text);
  } else {
    check_order(word.write, "wrote", now, write ? "writes" : "reads");
  }
  if (write) {
    check_order(word.read, "read", now, "writes");
    check_order(word.other_thread, "read", now, "writes");
    check_order(word.other_block, "read", now, "writes");
    word.write = now;
    word.read = word.other_thread = word.other_block = {};
    word.mbarrier = 0;
    word.when = current->view.own;
    forget_reads(word);
    return;
  }
  if (!is_global && word.write.thread == 0) fail_unwritten(word, code);
  if (is_global && through_l1 && word.write.thread && block_of(word.write.thread) != block_of(now.thread))
    fail(code, word.write.code, "%s reads through L1 data that %s wrote", Name(now.thread).text, Name(word.write.thread).text);
  if (word.read.thread != now.thread) {
    word.other_thread = word.read;
    if (word.read.thread && block_of(word.read.thread) != block_of(now.thread)) word.other_block = word.read;
  }
  word.read = now;
  if (!is_global && !current->block->mbarriers.empty()) remember_read(word, code);
}

int32_t code_of(void* address) { return static_cast<int32_t>(static_cast<const char*>(address) - run->code); }

// The words at an address that this thread may use. Null after an error, and for the thread's own stack.
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
  if (past >= -AROUND && past < run->launch->shared + AROUND)
    fail(code, 0, "%s uses byte %lld of the block's %lld bytes of shared memory", Name(current->number).text,
         static_cast<long long>(past), static_cast<long long>(run->launch->shared));
  else fail(code, 0, "%s uses %zu bytes outside the arrays of the launch", Name(current->number).text, size);
  return nullptr;
}

void access(const void* address, size_t size, bool write, void* code) {
  if (!current) return;
  bool is_global;
  const int32_t place = code_of(code);
  Word* words = words_at(static_cast<const char*>(address), size, is_global, place);
  if (!words) return;
  if (size <= 16 && (size & (size - 1)) == 0 && reinterpret_cast<uintptr_t>(address) % size)
    fail(place, 0, "%s uses %zu bytes at an address that is not a multiple of that", Name(current->number).text, size);
  for (size_t i = 0; i < (size + 3) / 4; i++) use(words[i], write, is_global, true, place);
}

// ---- meeting

bool same(Location a, Location b) { return a.line == b.line && strcmp(a.file, b.file) == 0; }

// This thread waits for `what`. True for the last thread, which lets the others go on.
bool arrive(Meeting& meeting, int expected, const char* what, Location place) {
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

// The threads of these blocks have met: each now knows everything that all of them know.
void join_clocks(Block* const* blocks, size_t count) {
  const Domain& domain = *blocks[0]->domain;
  if (domain.mbarriers.empty()) return;
  auto clocks = std::make_shared<Clocks>();
  Clocks phases;
  uint32_t latest = 0;
  const Clocks* last = nullptr;
  for (size_t i = 0; i < count; i++)
    for (Thread& thread : blocks[i]->threads) {
      if (thread.view.others.get() != last) join(*clocks, *thread.view.others);
      last = thread.view.others.get();
      join(*clocks, thread.view.thread, thread.view.own);
      join(phases, thread.phases);
      latest = std::max(latest, thread.view.own);
    }
  for (size_t i = 0; i < count; i++)
    for (Thread& thread : blocks[i]->threads) {
      thread.met.push_back(thread.view.own);
      thread.view.others = clocks;
      thread.view.lanes = latest;
      thread.view.own = latest + 1;
      thread.phases = phases;
    }
}

// The same for the lanes of a warp, except for `phases`: a shuffle orders no memory.
void join_clocks(Thread* lanes) {
  if (lanes->block->domain->mbarriers.empty()) return;
  auto others = lanes->view.others;
  uint32_t latest = 0;
  for (uint32_t lane = 0; lane < WARP; lane++) {
    const View& view = lanes[lane].view;
    latest = std::max(latest, view.own);
    if (view.others != others) {
      auto joined = std::make_shared<Clocks>(*others);
      join(*joined, *view.others);
      others = joined;
    }
  }
  for (uint32_t lane = 0; lane < WARP; lane++) {
    View& view = lanes[lane].view;
    view.others = others;
    view.lanes = latest;
    view.own = latest + 1;
  }
}

void wide_barrier(const char* what, Location place) {
  Domain& domain = *current->block->domain;
  if (arrive(domain.meeting, static_cast<int>(domain.blocks.size()) * run->launch->block, what, place)) {
    domain.rounds++;
    join_clocks(domain.blocks.data(), domain.blocks.size());
    for (Block* block : domain.blocks)
      for (Thread& thread : block->threads) {
        if (thread.ended) fail(0, 0, "%s has ended and is waited for at %s:%d", Name(thread.number).text, place.file, place.line);
        thread.block_meetings++, thread.wide_meetings++;
        let_go(thread);
      }
  }
  switch_away();
}

// ---- deliveries

// A delivery brings everything that its sender knew.
void gather(Mbarrier& mbarrier, const View& view) {
  if (std::find(mbarrier.gathered.begin(), mbarrier.gathered.end(), view.others) == mbarrier.gathered.end()) {
    mbarrier.gathered.push_back(view.others);
    join(mbarrier.clocks, *view.others);
  }
  view.add_to(mbarrier.clocks);
}

// Ends the phase if it is complete. Called when the tx-count has changed.
void check_phase(Mbarrier& mbarrier, int32_t code) {
  if (mbarrier.bytes > MOST_BYTES || mbarrier.bytes < -MOST_BYTES)
    fail(code, 0, "%s counts %lld bytes, can count %lld", NameOf(mbarrier).text, static_cast<long long>(mbarrier.bytes),
         static_cast<long long>(MOST_BYTES));
  if (!mbarrier.armed) return;
  if (mbarrier.bytes < 0)
    fail(code, mbarrier.last_code, "%s gets %lld bytes more than it expects in phase %u", NameOf(mbarrier).text,
         static_cast<long long>(-mbarrier.bytes), mbarrier.phase);
  if (mbarrier.bytes) return;
  mbarrier.phase++;
  mbarrier.armed = false;
  mbarrier.gathered.clear();
  mbarrier.joined.clear();
  join(mbarrier.clocks, clock_of(*mbarrier.block->domain, mbarrier.number), mbarrier.phase);
  mbarrier.ends.push_back(std::make_shared<Clocks>(mbarrier.clocks));
  for (Thread* thread : mbarrier.waiting) let_go(*thread);
  mbarrier.waiting.clear();
}

// Updates the view of a thread that has waited until `phases` phases have ended.
void join_end(Mbarrier& mbarrier, uint32_t phases, View& view) {
  if (view.knows(clock_of(*mbarrier.block->domain, mbarrier.number)) >= phases) return;
  for (const auto& joined : mbarrier.joined)
    if (joined.phases == phases && joined.before == view.others) {
      view.others = joined.after;
      return;
    }
  auto after = std::make_shared<Clocks>(*view.others);
  join(*after, *mbarrier.ends[phases - 1]);
  mbarrier.joined.push_back({phases, view.others, after});
  view.others = after;
}

// Whether the view knows that a word was plainly written and that its writer has met others since. True if it was not written.
bool knows_write(const View& view, const Word& word, const Domain& domain) {
  if (word.write.thread == 0) return true;
  const uint32_t number = word.write.thread - domain.blocks[0]->threads[0].number;
  const auto threads = static_cast<uint32_t>(run->launch->block);
  const auto& met = domain.blocks[number / threads]->threads[number % threads].met;
  const auto next = std::lower_bound(met.begin(), met.end(), word.when);
  return next != met.end() && view.knows(number) >= *next;
}

// A word receives its part of a delivery.
void land(Word& word, const Delivery& delivery) {
  const Access& sender = delivery.sender;
  const Mbarrier& mbarrier = *delivery.mbarrier;
  const Domain& domain = *mbarrier.block->domain;
  const Name name(sender.thread);
  if (word.copying == MBARRIER) fail(sender.code, 0, "a delivery from %s overwrites an mbarrier", name.text);
  if (word.copying)
    fail(sender.code, word.write.code, "a delivery from %s overwrites memory that a copy of %s is on its way to", name.text,
         Name(word.copying).text);
  if (word.mbarrier ? delivery.view.knows(clock_of(domain, word.mbarrier - 1)) <= word.when
                    : !knows_write(delivery.view, word, domain))
    fail(sender.code, word.write.code, "a delivery from %s overwrites data that %s %s, nothing orders them", name.text,
         Name(word.write.thread).text, word.mbarrier ? "has sent" : "writes");
  for (uint32_t at = word.reads; at; at = run->reads[at].next) {
    const Read& read = run->reads[at];
    for (uint32_t lanes = read.lanes; lanes; lanes &= lanes - 1) {
      const uint32_t thread = read.warp * WARP + static_cast<uint32_t>(__builtin_ctz(lanes));
      if (delivery.view.knows(thread) < read.clock)
        fail(sender.code, read.code, "a delivery from %s overwrites data that %s reads, nothing orders them", name.text,
             Name(domain.blocks[0]->threads[0].number + thread).text);
    }
  }
  forget_reads(word);
  word = {sender, {}, {}, {}, 0, mbarrier.number + 1, mbarrier.phase, 0};
}

// Any one of the deliveries arrives: its bytes and their count in one step.
void deliver(Domain& domain) {
  auto& deliveries = domain.deliveries;
  std::swap(deliveries[draw(static_cast<unsigned>(deliveries.size()))], deliveries.back());
  const Delivery delivery = std::move(deliveries.back());
  deliveries.pop_back();
  Mbarrier& mbarrier = *delivery.mbarrier;
  const Access& sender = delivery.sender;
  // Else it could come before the end of that phase in another run.
  if (delivery.view.knows(clock_of(domain, mbarrier.number)) < mbarrier.phase)
    fail(sender.code, 0, "a delivery from %s comes in phase %u of %s, nothing orders its sending after the end of phase %u",
         Name(sender.thread).text, mbarrier.phase, NameOf(mbarrier).text, mbarrier.phase - 1);
#if !defined(__SANITIZE_ADDRESS__)
  for (size_t i = 0; i < 4; i++) land(mbarrier.block->words[static_cast<size_t>(delivery.byte) / 4 + i], delivery);
#endif
  memcpy(mbarrier.block->shared + delivery.byte, delivery.values, sizeof delivery.values);
  mbarrier.last_sender = sender.thread, mbarrier.last_phase = mbarrier.phase, mbarrier.last_code = sender.code;
  mbarrier.bytes -= sizeof delivery.values;
  gather(mbarrier, delivery.view);
  check_phase(mbarrier, sender.code);
}

// Some deliveries arrive; if no thread can run, as many as it takes until one can.
void deliver_some() {
  Domain& domain = run->domains.front();
  while (!domain.deliveries.empty() && run->patience && draw(run->patience) == 0) deliver(domain);
  while (!domain.deliveries.empty() && run->ready.empty()) deliver(domain);
}

// Each lane of the warp brings a value; the last one computes `result` for all lanes.
template <class Result>
void warp_meeting(const char* what, Location place, Result result) {
  Block& block = *current->block;
  const uint32_t warp = current->indices.thread.x / WARP;
  if (arrive(block.warps[warp], WARP, what, place)) {
    Thread* lanes = &block.threads[warp * WARP];
    join_clocks(lanes);
    for (int lane = 0; lane < static_cast<int>(WARP); lane++) {
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
  const emulator_launch& launch = *run->launch;
  auto block = std::make_unique<Block>();
  block->index = {static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z)};
  const size_t size = (static_cast<size_t>(launch.shared) + 15) / 16 * 16 + 16 + 2 * AROUND;
  block->shared = static_cast<char*>(aligned_alloc(16, size)) + AROUND;
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
    thread.indices = {
        {static_cast<unsigned>(i), 0, 0},
        block->index,
        {static_cast<unsigned>(launch.block), 1, 1},
        {static_cast<unsigned>(launch.grid[0]), static_cast<unsigned>(launch.grid[1]), static_cast<unsigned>(launch.grid[2])}};
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
    Location place;
    int count;
  };
  std::vector<Group> groups;
  for (auto& block : run->blocks)
    for (Thread& thread : block->threads) {
      const char* waits = thread.ended ? "the end" : thread.waits;
      auto group = std::find_if(groups.begin(), groups.end(), [&](const Group& g) {
        return strcmp(g.waits, waits) == 0 && (thread.ended || same(g.place, thread.place));
      });
      if (group == groups.end()) groups.push_back({waits, thread.place, 1});
      else group->count++;
    }
  for (const Group& group : groups)
    if (used < sizeof text)
      used += static_cast<size_t>(strcmp(group.waits, "the end") == 0
                                      ? snprintf(text + used, sizeof text - used, "; %d have ended", group.count)
                                      : snprintf(text + used, sizeof text - used, "; %d wait for %s at %s:%d", group.count,
                                                 group.waits, group.place.file, group.place.line));
  for (const Domain& domain : run->domains)
    for (const Mbarrier* mbarrier : domain.mbarriers) {
      if (mbarrier->waiting.empty() || used >= sizeof text) continue;
      used += static_cast<size_t>(snprintf(
          text + used, sizeof text - used,
          mbarrier->armed ? "; %s is in phase %u and lacks %lld bytes" : "; %s is in phase %u, is not armed and got %lld bytes",
          NameOf(*mbarrier).text, mbarrier->phase, static_cast<long long>(mbarrier->armed ? mbarrier->bytes : -mbarrier->bytes)));
    }
  fail(0, 0, "threads wait forever%s", text);
}

// Runs the blocks in run->blocks to their end.
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
  // A block's shared memory exists until its last thread ends, so it is enough if one thread has waited.
  for (const Domain& domain : run->domains)
    for (const Mbarrier* mbarrier : domain.mbarriers) {
      uint32_t phases = 0;
      for (const Thread& thread : mbarrier->block->threads)
        phases = std::max(phases, thread.view.knows(clock_of(domain, mbarrier->number)));
      if (!run->failed && mbarrier->last_sender && mbarrier->last_phase >= phases)
        fail(mbarrier->last_code, 0, "block (%u, %u, %u) may have ended before a delivery from %s into its shared memory",
             mbarrier->block->index.x, mbarrier->block->index.y, mbarrier->block->index.z, Name(mbarrier->last_sender).text);
    }
  for (auto& block : run->blocks) free(block->shared - AROUND);
  run->reads.resize(1);
  run->free_reads = 0;
  run->blocks.clear();
  run->domains.clear();
}

}  // namespace

Indices here() { return current->indices; }

char* shared() { return current->block->shared; }

void block_barrier(Location place) {
  Block& block = *current->block;
  if (arrive(block.meeting, run->launch->block, "the block", place)) {
    Block* self = &block;
    join_clocks(&self, 1);
    for (Thread& thread : block.threads) {
      thread.block_meetings++;
      let_go(thread);
    }
  }
  switch_away();
}

void cluster_barrier(Location place) {
  if (run->launch->cooperative) fail(0, 0, "a cluster barrier where there is no cluster, at %s:%d", place.file, place.line);
  wide_barrier("the cluster", place);
}

void group_barrier(unsigned* counter, unsigned blocks, unsigned round, Location place) {
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

float exchange_lanes(float value, int mask, Location place) {
  Thread* self = current;  // after a switch of threads, the compiler might use an old `current`
  self->lane_value = value;
  self->lane_mask = mask;
  warp_meeting("the warp", place, [](Thread* lanes, int lane) {
    lanes[lane].lane_result = lanes[(lane ^ lanes[lane].lane_mask) % WARP].lane_value;
  });
  return self->lane_result;
}

unsigned ballot(bool predicate, Location place) {
  Thread* self = current;
  self->lane_value = predicate;
  warp_meeting("the warp", place, [](Thread* lanes, int lane) {
    unsigned bits = 0;
    for (uint32_t i = 0; i < WARP; i++) bits |= static_cast<unsigned>(lanes[i].lane_value != 0) << i;
    lanes[lane].lane_ballot = bits;
  });
  return self->lane_ballot;
}

float lane_value(float value, int lane, Location place) {
  Thread* self = current;
  self->lane_value = value;
  self->lane_from = lane;
  if (lane < 0 || lane >= static_cast<int>(WARP))
    fail(0, 0, "lane_value of lane %d, needs one from 0 to 31, at %s:%d", lane, place.file, place.line);
  warp_meeting("the warp", place,
               [](Thread* lanes, int lane) { lanes[lane].lane_result = lanes[lanes[lane].lane_from].lane_value; });
  return self->lane_result;
}

// A copy may read and write at any time from its start to the wait. Both ends are checked; the bytes move at the wait.
static void use_copy(const Copy& copy, int32_t code, bool lands) {
#if defined(__SANITIZE_ADDRESS__)
  (void)copy, (void)code, (void)lands;
#else
  bool is_global;
  Word* from = words_at(copy.global, static_cast<size_t>(copy.bytes), is_global, code);
  if (!from || !is_global) fail(code, 0, "%s copies from memory that is not global", Name(current->number).text);
  Word* to = words_at(copy.shared, static_cast<size_t>(copy.bytes), is_global, code);
  if (!to || is_global) fail(code, 0, "%s copies to memory that is not shared", Name(current->number).text);
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
    fail(code, 0, "%s copies %d bytes at an address that is not a multiple of that", Name(current->number).text, bytes);
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

// The block at a rank of the cluster, where 16 bytes are to be written.
static Block& target(Remote to, int32_t code) {
  Domain& domain = *current->block->domain;
  if (to.rank < 0 || to.rank >= static_cast<int>(domain.blocks.size()))
    fail(code, 0, "%s stores into block %d of a cluster of %zu", Name(current->number).text, to.rank, domain.blocks.size());
  if (to.byte < 0 || to.byte + 16 > run->launch->shared)
    fail(code, 0, "%s stores at byte %lld of a block's %lld bytes of shared memory", Name(current->number).text,
         static_cast<long long>(to.byte), static_cast<long long>(run->launch->shared));
  if (to.byte % 16) fail(code, 0, "%s stores 16 bytes at an address that is not a multiple of that", Name(current->number).text);
  Block& block = *domain.blocks[to.rank];
  if (&block != current->block && current->wide_meetings == 0)
    fail(code, 0, "%s stores into the shared memory of a block that may not have started", Name(current->number).text);
  return block;
}

void store_to_block(Remote to, const void* values) {
  const int32_t code = code_of(__builtin_return_address(0));
  Block& block = target(to, code);
  if (&block != current->block) block.stores_end = std::max(block.stores_end, current->wide_meetings + 1);
#if !defined(__SANITIZE_ADDRESS__)
  for (size_t i = 0; i < 4; i++) use(block.words[static_cast<size_t>(to.byte) / 4 + i], true, false, false, code);
#endif
  memcpy(block.shared + to.byte, values, 16);
}

Remote remote(const void* local, int rank) {
  const int32_t code = code_of(__builtin_return_address(0));
  const int64_t byte = static_cast<const char*>(local) - current->block->shared;
  if (run->launch->cluster == 1) fail(code, 0, "%s asks for a block of its cluster and has none", Name(current->number).text);
  if (byte < 0 || byte > run->launch->shared)
    fail(code, 0, "%s asks for the address in another block of memory that is not shared", Name(current->number).text);
  return {rank, byte};
}

static Mbarrier* mbarrier_at(Block& block, int64_t byte) {
  for (auto& mbarrier : block.mbarriers)
    if (mbarrier->byte == byte) return mbarrier.get();
  return nullptr;
}

void mbarrier_init(void* barrier) {
  const int32_t code = code_of(__builtin_return_address(0));
  Block& block = *current->block;
  Domain& domain = *block.domain;
  const int64_t byte = static_cast<char*>(barrier) - block.shared;
  if (byte < 0 || byte + 8 > run->launch->shared || byte % 8)
    fail(code, 0, "%s initialises an mbarrier at byte %lld of %lld, needs a multiple of 8 in shared memory",
         Name(current->number).text, static_cast<long long>(byte), static_cast<long long>(run->launch->shared));
  if (const Mbarrier* other = mbarrier_at(block, byte))
    fail(code, other->init.code, "%s initialises %s, which is one", Name(current->number).text, NameOf(*other).text);
#if !defined(__SANITIZE_ADDRESS__)
  for (int64_t i = byte / 4; i < byte / 4 + 2; i++) {
    use(block.words[static_cast<size_t>(i)], true, false, false, code);
    block.words[static_cast<size_t>(i)].copying = MBARRIER;
  }
#endif
  auto mbarrier = std::make_unique<Mbarrier>();
  mbarrier->block = &block;
  mbarrier->byte = byte;
  mbarrier->number = static_cast<uint32_t>(domain.mbarriers.size());
  mbarrier->init = access_now(code);
  domain.mbarriers.push_back(mbarrier.get());
  block.mbarriers.push_back(std::move(mbarrier));
}

void mbarrier_init_fence() {
  for (auto& mbarrier : current->block->mbarriers)
    if (mbarrier->init.thread == current->number && mbarrier->init.wide_meetings == current->wide_meetings)
      mbarrier->fenced = true;
}

// The mbarrier of this thread's block that it is about to use.
static Mbarrier& own_mbarrier(void* barrier, int32_t code) {
  const int64_t byte = static_cast<char*>(barrier) - current->block->shared;
  Mbarrier* mbarrier = mbarrier_at(*current->block, byte);
  if (!mbarrier)
    fail(code, 0, "%s uses an mbarrier at byte %lld that has not been initialised", Name(current->number).text,
         static_cast<long long>(byte));
  if (!ordered(mbarrier->init, access_now(code), current->block->domain))
    fail(code, mbarrier->init.code, "%s uses an mbarrier that %s initialised, with no barrier between",
         Name(current->number).text, Name(mbarrier->init.thread).text);
  return *mbarrier;
}

void mbarrier_expect(void* barrier, int bytes) {
  const int32_t code = code_of(__builtin_return_address(0));
  Mbarrier& mbarrier = own_mbarrier(barrier, code);
  if (bytes < 0) fail(code, 0, "%s expects %d bytes", Name(current->number).text, bytes);
  // The phase may have ended by chance. In another run it might not have.
  if (current->view.knows(clock_of(*current->block->domain, mbarrier.number)) < mbarrier.armings)
    fail(code, mbarrier.armed_code, "%s arms %s, nothing orders that after the end of phase %u, which is armed",
         Name(current->number).text, NameOf(mbarrier).text, mbarrier.armings - 1);
  mbarrier.armed = true;
  mbarrier.armed_code = code;
  mbarrier.armings++;
  mbarrier.bytes += bytes;
  check_phase(mbarrier, code);
}

// PTX ISA, "mbarrier.test_wait / mbarrier.try_wait", with .parity: until the phase of that parity, the current one or the
// one before, has ended.
void mbarrier_wait(void* barrier, int parity, Location place) {
  const int32_t code = code_of(__builtin_return_address(0));
  Thread* self = current;
  Mbarrier& mbarrier = own_mbarrier(barrier, code);
  if (parity != 0 && parity != 1) fail(code, 0, "%s waits for parity %d, needs 0 or 1", Name(self->number).text, parity);
  const uint32_t wanted = static_cast<uint32_t>(parity);
  run->ready.push_back(self);  // even if the phase has ended, others may run first
  switch_away();
  while ((mbarrier.phase & 1) == wanted) {
    self->waits = "an mbarrier";
    self->place = place;
    mbarrier.waiting.push_back(self);
    switch_away();
  }
  const uint32_t before = known(self->phases, mbarrier.number), phases = before + ((before & 1) == wanted);
  if (phases == 0) return;
  join(self->phases, mbarrier.number, phases);
  join_end(mbarrier, phases, self->view);
}

void store_async(Remote to, Remote barrier, const void* values) {
  const int32_t code = code_of(__builtin_return_address(0));
  Thread* self = current;
  Block& block = target(to, code);
  if (barrier.rank != to.rank)
    fail(code, 0, "%s sends to block %d of the cluster with an mbarrier of block %d", Name(self->number).text, to.rank,
         barrier.rank);
  Mbarrier* mbarrier = mbarrier_at(block, barrier.byte);
  if (!mbarrier || self->wide_meetings <= mbarrier->init.wide_meetings)
    fail(code, mbarrier ? mbarrier->init.code : 0,
         "%s sends with an mbarrier at byte %lld of block %d of the cluster, which has not met since it was initialised",
         Name(self->number).text, static_cast<long long>(barrier.byte), to.rank);
  if (!mbarrier->fenced)
    fail(code, mbarrier->init.code,
         "%s sends with an mbarrier that was initialised without mbarrier_init_fence() before the cluster met",
         Name(self->number).text);
  Delivery delivery = {mbarrier, to.byte, {}, access_now(code), self->view};
  memcpy(delivery.values, values, sizeof delivery.values);
  block.domain->deliveries.push_back(delivery);
  self->view.own++;
  if (draw(8) == 0) {
    run->ready.push_back(self);
    switch_away();
  }
}

}  // namespace emulator

// ---- launching

using namespace emulator;

int emulator_run(void (*kernel)(void**), void** arguments, const emulator_launch* launch, emulator_error* error) {
  Running state;
  run = &state;
  state.kernel = kernel, state.arguments = arguments, state.launch = launch, state.error = error;
  state.random = (launch->seed + 1ull) * 0x9E3779B97F4A7C15ull;
  draw(1);  // neighbouring seeds have neighbouring first numbers
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
    else state.regions.push_back({begin, end, nullptr});
  }
  for (Region& region : state.regions)
    region.words = static_cast<Word*>(calloc(static_cast<size_t>(region.end - region.begin + 3) / 4, sizeof(Word)));

  const int x = launch->grid[0], y = launch->grid[1], z = launch->grid[2];
  const int together = launch->cooperative ? x * y * z : launch->cluster;
  state.stacks_size = STACK * static_cast<size_t>(launch->block) * together;
  state.stacks = static_cast<char*>(
      mmap(nullptr, state.stacks_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (state.stacks == MAP_FAILED) {
    snprintf(error->message, sizeof error->message, "no memory for the stacks of %d blocks", together);
    state.failed = true;
  }
  std::vector<int> order(static_cast<size_t>(x) * y * z / together);
  for (size_t i = 0; i < order.size(); i++) order[i] = static_cast<int>(i);
  for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[draw(static_cast<unsigned>(i))]);
  // Deliveries come at once, sometimes, or only when no thread can run without them.
  constexpr unsigned PATIENCE[] = {1, 2, 8, 64, 0};
  state.patience = PATIENCE[draw(sizeof PATIENCE / sizeof *PATIENCE)];
  const auto nothing = std::make_shared<Clocks>();
  for (int set : order) {
    if (state.failed) break;
    state.domains.resize(launch->cooperative ? static_cast<size_t>(y) * z : 1);
    for (int i = 0; i < together; i++) {
      const int number = set * together + i;
      auto block =
          make_block(number % x, number / x % y, number / x / y, state.stacks + STACK * static_cast<size_t>(launch->block) * i);
      block->domain = &state.domains[launch->cooperative ? static_cast<size_t>(number / x) : 0];
      block->domain->blocks.push_back(block.get());
      for (Thread& thread : block->threads) thread.view.others = nothing, thread.view.thread = block->domain->threads++;
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

// ---- the functions that -fsanitize=thread calls

#if !defined(__SANITIZE_ADDRESS__)
extern "C" {
// clang-format off
#define ACCESS(name, size, write) \
  void __tsan_##name(void* address) { emulator::access(address, size, write, __builtin_return_address(0)); }
#define ACCESSES(size) \
  ACCESS(read##size, size, false) ACCESS(write##size, size, true)
#define UNALIGNED(size) \
  ACCESS(unaligned_read##size, size, false) ACCESS(unaligned_write##size, size, true)
ACCESSES(1) ACCESSES(2) ACCESSES(4) ACCESSES(8) ACCESSES(16)
UNALIGNED(2) UNALIGNED(4) UNALIGNED(8) UNALIGNED(16)
    // clang-format on
    void __tsan_read_range(void* address, size_t size) {
  emulator::access(address, size, false, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t size) { emulator::access(address, size, true, __builtin_return_address(0)); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
}
#endif
