// The twin of kernels/cuda/primitives.cuh: the same functions, carried out by the machine. Where a barrier or a shuffle stands in
// the source comes along as a default argument.
#pragma once

#define PLACE machine::Place place = {__builtin_FILE(), __builtin_LINE()}

inline float* shared_memory() { return reinterpret_cast<float*>(machine::shared()); }
inline float exchange_lanes(float value, int mask, PLACE) { return machine::exchange_lanes(value, mask, place); }
inline unsigned ballot(bool predicate, PLACE) { return machine::ballot(predicate, place); }
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

#undef PLACE
