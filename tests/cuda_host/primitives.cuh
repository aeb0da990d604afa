// The twin of kernels/cuda/primitives.cuh: the same functions, by the emulator. A default argument passes the source line of a
// barrier or a shuffle.
#pragma once

// Inlined, so that the code of an access belongs to the kernel's line.
#define TWIN __attribute__((always_inline)) inline
#define PLACE emulator::Location place = {__builtin_FILE(), __builtin_LINE()}

template <class Value>
TWIN Value kept(Value value) {
  return value;
}
template <class Value>
TWIN void load_when(bool when, const Value* from, Value& value) {
  if (when) value = *from;
}
template <class Value>
TWIN void store_when(bool when, Value* to, Value value) {
  if (when) *to = value;
}
TWIN long long wide_product(long long a, long long b) { return a * b; }
TWIN float* shared_memory() { return reinterpret_cast<float*>(emulator::shared()); }
TWIN float exchange_lanes(float value, int mask, PLACE) { return emulator::exchange_lanes(value, mask, place); }
TWIN unsigned ballot(bool predicate, PLACE) { return emulator::ballot(predicate, place); }
TWIN float lane_value(float value, int lane, PLACE) { return emulator::lane_value(value, lane, place); }
TWIN void block_barrier(PLACE) { emulator::block_barrier(place); }
TWIN void cluster_barrier(PLACE) { emulator::cluster_barrier(place); }
TWIN void group_barrier(unsigned* counter, unsigned blocks, unsigned round, PLACE) {
  emulator::group_barrier(counter, blocks, round, place);
}
TWIN void copy_start(float4* shared, const float4* global) { emulator::copy_start(shared, global, sizeof(float4)); }
TWIN void copy_close_batch() { emulator::copy_close_batch(); }
template <int OPEN>
TWIN void copy_wait() {
  emulator::copy_wait(OPEN);
}

struct Remote {
  emulator::Remote place;
};
TWIN Remote remote(const void* local, int rank) { return {emulator::remote(local, rank)}; }
TWIN Remote operator+(Remote to, int bytes) { return {{to.place.rank, to.place.byte + bytes}}; }
TWIN void store_to_block(Remote to, float4 values) { emulator::store_to_block(to.place, &values); }

using Mbarrier = unsigned long long;
TWIN void mbarrier_init(Mbarrier* barrier) { emulator::mbarrier_init(barrier); }
TWIN void mbarrier_init_fence() { emulator::mbarrier_init_fence(); }
TWIN void mbarrier_expect(Mbarrier* barrier, int bytes) { emulator::mbarrier_expect(barrier, bytes); }
TWIN void mbarrier_wait(Mbarrier* barrier, int parity, PLACE) { emulator::mbarrier_wait(barrier, parity, place); }
TWIN void store_async(bool when, Remote to, Remote barrier, float4 values) {
  if (when) emulator::store_async(to.place, barrier.place, &values);
}

#undef PLACE
#undef TWIN
