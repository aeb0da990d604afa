// The product of one step: ROWS rows of the state, in shared memory, times COLUMNS columns of the matrix, kept on the chip.
//
// The matrix is (K, COLUMNS), zero beyond H. A warp is 32 / K_LANES lanes along the columns times K_LANES lanes along k. A lane
// owns 4 neighbouring columns, and every K_LANES-th group of 4 among its warp's k's. So one 16-byte read of the state feeds 16
// multiply-adds a row. Neighbouring lanes read the same 16 bytes, which shared memory serves together; the other lanes read
// neighbouring groups, so there is no bank conflict. COLUMN_WARPS warps stand side by side along the columns, and K_WARPS such
// rows of warps share the k's.
//
//   registers       16 weights for each of the lane's CHUNKS chunks (4·K_LANES·K_WARPS k's each), except for the last IN_SHARED
//   shared memory   the weights of those, 16 bytes a lane and column, in the order of the threads: no bank conflict
//
// Each lane sums its k's in order, then the lanes of a column add their sums in a tree, then the warps in order. The order is
// always the same.
//
// One thread finishes each element of the product. If a warp has all of k (K_WARPS = 1), this thread is one of its lanes, and the
// sum never leaves the registers: after the tree, REPLICAS lanes have the same element, and the first of them owns it. Otherwise
// the warps' sums go through shared memory, and the block's threads divide the elements among themselves.
#pragma once

#include "primitives.cuh"

template <int K_, int COLUMNS_, int K_LANES_, int K_WARPS_, int ROWS_, int IN_SHARED_>
struct Tile {
  static constexpr int K = K_, COLUMNS = COLUMNS_, K_LANES = K_LANES_, K_WARPS = K_WARPS_;
  static constexpr int ROWS = ROWS_, IN_SHARED = IN_SHARED_;
  static constexpr int COLUMN_LANES = 32 / K_LANES;
  static constexpr int COLUMN_WARPS = COLUMNS / (4 * COLUMN_LANES);
  static constexpr int THREADS = 32 * COLUMN_WARPS * K_WARPS;
  static constexpr int CHUNKS = K / (4 * K_LANES * K_WARPS);
  static constexpr int IN_REGISTERS = CHUNKS - IN_SHARED;
  static constexpr int SHARED_WEIGHTS = IN_SHARED * 16 * THREADS;               // floats
  static constexpr int PARTIALS = K_WARPS == 1 ? 0 : K_WARPS * ROWS * COLUMNS;  // floats
  static constexpr int SUMS = 4 * ROWS;                                         // sums of a lane, before the tree
  static constexpr int REPLICAS = SUMS < K_LANES ? K_LANES / SUMS : 1;
  static constexpr int ABREAST = THREADS / COLUMNS;  // rows that the block's threads finish at a time
  // Elements that a thread finishes.
  static constexpr int COUNT = K_WARPS > 1 ? (ROWS + ABREAST - 1) / ABREAST : SUMS > K_LANES ? SUMS / K_LANES : 1;
  static_assert(COLUMNS % (4 * COLUMN_LANES) == 0 && K % (4 * K_LANES * K_WARPS) == 0 && IN_REGISTERS >= 1 && IN_SHARED >= 0,
                "no such tile");
  static_assert((ROWS & (ROWS - 1)) == 0, "lanes exchange halves of the rows and columns");

  float4 in_registers[IN_REGISTERS][4];  // [chunk][column], 4 k's each
  float4* in_shared;                     // [chunk][column][thread]
  float* partials;                       // (K_WARPS, ROWS, COLUMNS)
  int lane;

  // Reads this block's weights, from column first_column on. `memory`: SHARED_WEIGHTS + PARTIALS floats of shared memory.
  template <class Pass>
  __device__ void load(const Pass& pass, int first_column, float* memory) {
    in_shared = reinterpret_cast<float4*>(memory) + threadIdx.x;
    partials = memory + SHARED_WEIGHTS;
    lane = kept(static_cast<int>(threadIdx.x % 32));
    const int j = first_column + lane_column();
#pragma unroll
    for (int i = 0; i < IN_REGISTERS; i++) pass.weights(k(i), j, in_registers[i]);
#pragma unroll 1
    for (int i = 0; i < IN_SHARED; i++) {
      float4 weights[4];
      pass.weights(k(IN_REGISTERS + i), j, weights);
#pragma unroll
      for (int c = 0; c < 4; c++) in_shared[(i * 4 + c) * THREADS] = weights[c];
    }
  }

  // Row and column in the tile of the thread's element i, and whether the thread owns it.
  __device__ static int row(int i) { return K_WARPS > 1 ? threadIdx.x / COLUMNS + i * ABREAST : (first_sum() + i) / 4; }
  __device__ static int column(int i) { return K_WARPS > 1 ? threadIdx.x % COLUMNS : lane_column() + (first_sum() + i) % 4; }
  __device__ static bool owns(int i) { return K_WARPS > 1 ? row(i) < ROWS : threadIdx.x % 32 / COLUMN_LANES % REPLICAS == 0; }

  // product: the thread's elements of (ROWS, K) · (K, COLUMNS). state: (ROWS, K) in shared memory. If K_WARPS > 1, all threads of
  // the block call it together, with a barrier between two calls.
  __device__ void multiply(const float* state, float (&product)[COUNT]) const {
    float sums[SUMS] = {};
    // Each chunk is read from shared memory while chunks in registers are multiplied.
    constexpr int GROUPS = IN_SHARED > 0 ? IN_SHARED : 1, OF_GROUP = (IN_REGISTERS + GROUPS - 1) / GROUPS;
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
      float4 weights[4] = {};
      if (IN_SHARED > 0)
#pragma unroll
        for (int c = 0; c < 4; c++) weights[c] = in_shared[(g * 4 + c) * THREADS];
#pragma unroll
      for (int i = 0; i < OF_GROUP; i++)
        if (g * OF_GROUP + i < IN_REGISTERS) multiply_chunk(state + k(g * OF_GROUP + i), in_registers[g * OF_GROUP + i], sums);
      if (IN_SHARED > 0) multiply_chunk(state + k(IN_REGISTERS + g), weights, sums);
    }
    reduce<SUMS, 16>(sums);
    if constexpr (K_WARPS == 1) {
#pragma unroll
      for (int i = 0; i < COUNT; i++) product[i] = sums[i];
    } else {
      if (threadIdx.x % 32 / COLUMN_LANES % REPLICAS == 0) {
        float* mine = partials + k_warp() * ROWS * COLUMNS + lane_column();
#pragma unroll
        for (int i = 0; i < (SUMS > K_LANES ? SUMS / K_LANES : 1); i++)
          mine[(first_sum() + i) / 4 * COLUMNS + (first_sum() + i) % 4] = sums[i];
      }
      block_barrier();
#pragma unroll
      for (int i = 0; i < COUNT; i++) {
        const float* from = partials + (row(i) < ROWS ? row(i) : 0) * COLUMNS + column(i);
        float parts[K_WARPS];
#pragma unroll
        for (int w = 0; w < K_WARPS; w++) parts[w] = from[w * ROWS * COLUMNS];
        product[i] = parts[0];
#pragma unroll
        for (int w = 1; w < K_WARPS; w++) product[i] += parts[w];
      }
    }
  }

 private:
  // The lane's first sum after the tree, counted as 4·row + column.
  __device__ static int first_sum() {
    return threadIdx.x % 32 / (COLUMN_LANES * REPLICAS) * (SUMS > K_LANES ? SUMS / K_LANES : 1);
  }
  __device__ static int k_warp() { return threadIdx.x / 32 / COLUMN_WARPS; }
  // The lane's first column within the block's.
  __device__ static int lane_column() {
    return (threadIdx.x / 32 % COLUMN_WARPS * COLUMN_LANES + threadIdx.x % COLUMN_LANES) * 4;
  }
  // The lane's first k of chunk i.
  __device__ static int k(int i) { return ((k_warp() * CHUNKS + i) * K_LANES + threadIdx.x % 32 / COLUMN_LANES) * 4; }

  // Adds the products of 4 k's, for each row and each of the lane's columns.
  __device__ static void multiply_chunk(const float* state, const float4* weights, float* sums) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      const float4 s = *reinterpret_cast<const float4*>(state + r * K);
#pragma unroll
      for (int c = 0; c < 4; c++) {
        float sum = sums[r * 4 + c];
        sum = fmaf(s.x, weights[c].x, sum);
        sum = fmaf(s.y, weights[c].y, sum);
        sum = fmaf(s.z, weights[c].z, sum);
        sums[r * 4 + c] = fmaf(s.w, weights[c].w, sum);
      }
    }
  }

  // A tree over the lanes along k. As long as a lane has several sums, it gives half of them to the lane whose number differs in
  // BIT and keeps the other half.
  template <int HAVE, int BIT>
  __device__ void reduce(float* sums) const {
    if constexpr (BIT >= COLUMN_LANES) {
      if constexpr (HAVE > 1) {
        const bool upper = lane & BIT;
#pragma unroll
        for (int i = 0; i < HAVE / 2; i++) {
          const float keep = upper ? sums[HAVE / 2 + i] : sums[i], give = upper ? sums[i] : sums[HAVE / 2 + i];
          sums[i] = keep + exchange_lanes(give, BIT);
        }
        reduce<HAVE / 2, BIT / 2>(sums);
      } else {
        sums[0] += exchange_lanes(sums[0], BIT);
        reduce<1, BIT / 2>(sums);
      }
    }
  }
};
