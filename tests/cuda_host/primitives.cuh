// The twin of kernels/cuda/primitives.cuh: the same functions, carried out by the machine. Where a barrier or a shuffle stands in
// the source comes along as a default argument.
#pragma once

#define PLACE machine::Place place = {__builtin_FILE(), __builtin_LINE()}

inline int kept(int value) { return value; }
inline long long wide_product(long long a, long long b) { return a * b; }
inline float* shared_memory() { return reinterpret_cast<float*>(machine::shared()); }
inline float exchange_lanes(float value, int mask, PLACE) { return machine::exchange_lanes(value, mask, place); }
inline unsigned ballot(bool predicate, PLACE) { return machine::ballot(predicate, place); }
inline float lane_value(float value, int lane, PLACE) { return machine::lane_value(value, lane, place); }
inline void block_barrier(PLACE) { machine::block_barrier(place); }
inline void cluster_barrier(PLACE) { machine::cluster_barrier(place); }
inline void group_barrier(unsigned* counter, unsigned blocks, unsigned round, PLACE) {
  machine::group_barrier(counter, blocks, round, place);
}
inline void copy_start(float4* shared, const float4* global) { machine::copy_start(shared, global, sizeof(float4)); }
inline void copy_close_batch() { machine::copy_close_batch(); }
template <int OPEN>
inline void copy_wait() { machine::copy_wait(OPEN); }
inline void store_to_block(float* local, int rank, float value) { machine::store_to_block(local, rank, value); }

using Remote = machine::Remote;
inline Remote remote(const void* local, int rank) { return machine::remote(local, rank); }
inline Remote operator+(Remote place, int bytes) { return {place.rank, place.byte + bytes}; }
inline void store_to_block(Remote to, float4 values) { machine::store_to_block(to, &values); }

using Mbarrier = unsigned long long;
inline uint64_t* word_of(Mbarrier* barrier) { return reinterpret_cast<uint64_t*>(barrier); }
inline void mbarrier_init(Mbarrier* barrier) { machine::mbarrier_init(word_of(barrier)); }
inline void mbarrier_init_fence() { machine::mbarrier_init_fence(); }
inline void mbarrier_expect(Mbarrier* barrier, int bytes) { machine::mbarrier_expect(word_of(barrier), bytes); }
inline void mbarrier_wait(Mbarrier* barrier, int parity, PLACE) { machine::mbarrier_wait(word_of(barrier), parity, place); }
inline void store_async(Remote to, Remote barrier, float4 values) { machine::store_async(to, barrier, &values); }
inline void store_async(bool when, Remote to, Remote barrier, float4 values) {
  if (when) store_async(to, barrier, values);
}
inline Remote kept(Remote place) { return place; }

#undef PLACE
