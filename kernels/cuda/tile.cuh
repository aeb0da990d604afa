// The product of one step: ROWS rows of the state, in shared memory, times COLUMNS columns of the matrix, kept on the chip.
//
// The matrix is (K, COLUMNS), zero beyond H. A warp is 8 lanes along k times 4 lanes along the columns; a lane owns 4 neighbouring
// columns, and of its warp's k's every eighth group of 4. So one 16-byte read of the state, the same for the 4 lanes that share
// their k's and over 8 neighbouring groups otherwise (128 bytes in a row: no bank conflict), feeds 16 multiply-adds a row.
// COLUMNS / 16 warps stand side by side along the columns, and K_WARPS such rows of warps share the k's.
//
//   registers       16 weights for each of the lane's CHUNKS chunks (32·K_WARPS k's each), but for the last IN_SHARED ones
//   shared memory   the weights of those, 16 bytes a lane and column, in the order of the threads: no bank conflict
//
// Cycles a row: K·COLUMNS / 128 for the multiply-adds. Shared memory moves 128 bytes a cycle and is busy for
// THREADS / 32 · (CHUNKS + 16·IN_SHARED / ROWS + 4).
//
// Each lane adds up its k's in order, then the 8 lanes of a column add up theirs in a tree: always the same order.
#pragma once

#include "primitives.cuh"

template <int K_, int COLUMNS_, int LANE_COLUMNS_, int K_WARPS_, int ROWS_, int IN_SHARED_>
struct Tile {
  static constexpr int K = K_, COLUMNS = COLUMNS_, LANE_COLUMNS = LANE_COLUMNS_;
  static constexpr int K_WARPS = K_WARPS_, ROWS = ROWS_, IN_SHARED = IN_SHARED_;
  static constexpr int COLUMN_WARPS = COLUMNS / (4 * LANE_COLUMNS);
  static constexpr int THREADS = 32 * COLUMN_WARPS * K_WARPS;
  static constexpr int CHUNKS = K / (32 * K_WARPS);
  static constexpr int IN_REGISTERS = CHUNKS - IN_SHARED;
  static constexpr int SHARED_WEIGHTS = IN_SHARED * 4 * LANE_COLUMNS * THREADS;  // floats
  static constexpr int PARTIALS = K_WARPS * ROWS * COLUMNS;        // floats
  static_assert(COLUMNS % (4 * LANE_COLUMNS) == 0 && LANE_COLUMNS % 4 == 0 && K % (32 * K_WARPS) == 0 && IN_REGISTERS >= 1 &&
                    IN_SHARED >= 0, "no such tile");
  static_assert((ROWS & (ROWS - 1)) == 0, "lanes exchange halves of the rows and columns");

  float4 in_registers[IN_REGISTERS][LANE_COLUMNS];  // [chunk][column], 4 k's each
  float4* in_shared;                     // [chunk][column][thread]

  // Reads the weights of columns first_column ... of this block. `memory`: SHARED_WEIGHTS floats.
  template <class Pass>
  __device__ void load(const Pass& pass, int first_column, float* memory) {
    in_shared = reinterpret_cast<float4*>(memory) + threadIdx.x;
    const int j = first_column + column();
#pragma unroll
    for (int i = 0; i < IN_REGISTERS; i++) load_chunk(pass, k(i), j, in_registers[i]);
#pragma unroll 1
    for (int i = 0; i < IN_SHARED; i++) {
      float4 weights[LANE_COLUMNS];
      load_chunk(pass, k(IN_REGISTERS + i), j, weights);
#pragma unroll
      for (int c = 0; c < LANE_COLUMNS; c++) in_shared[(i * LANE_COLUMNS + c) * THREADS] = weights[c];
    }
  }

  // state: (ROWS, K) in shared memory. partials: (K_WARPS, ROWS, COLUMNS) in shared memory, their sum over K_WARPS the product.
  __device__ void multiply(const float* state, float* partials) const {
    float sums[ROWS * LANE_COLUMNS] = {};
#pragma unroll
    for (int i = 0; i < IN_REGISTERS; i++) multiply_chunk(state + k(i), in_registers[i], sums);
#pragma unroll 1  // unrolled, the reads of several chunks would need more registers than there are
    for (int i = 0; i < IN_SHARED; i++) {
      float4 weights[LANE_COLUMNS];
#pragma unroll
      for (int c = 0; c < LANE_COLUMNS; c++) weights[c] = in_shared[(i * LANE_COLUMNS + c) * THREADS];
      multiply_chunk(state + k(IN_REGISTERS + i), weights, sums);
    }
    constexpr int HAVE = ROWS * LANE_COLUMNS;
    // A tree over the 8 lanes along k. While a lane has several sums, it gives half of them away and keeps the other half.
    int first = 0;
    const int lane = threadIdx.x % 32;
    reduce<HAVE, 4>(sums, lane, first);
    reduce<HAVE / 2, 2>(sums, lane, first);
    reduce<HAVE / 4, 1>(sums, lane, first);
    constexpr int LEFT = HAVE >= 8 ? HAVE / 8 : 1;
    if (HAVE >= 8 || lane % 2 == 0) {  // of 4 sums, two lanes have the same one
      float* mine = partials + k_warp() * ROWS * COLUMNS + column();
#pragma unroll
      for (int i = 0; i < LEFT; i++) mine[(first + i) / LANE_COLUMNS * COLUMNS + (first + i) % LANE_COLUMNS] = sums[i];
    }
  }

 private:
  __device__ static int k_warp() { return threadIdx.x / 32 / COLUMN_WARPS; }
  // The lane's first column within the block's.
  __device__ static int column() {
    return threadIdx.x / 32 % COLUMN_WARPS * 4 * LANE_COLUMNS + threadIdx.x % 32 / 8 * LANE_COLUMNS;
  }
  // The lane's first k of chunk i.
  __device__ static int k(int i) { return (k_warp() * CHUNKS + i) * 32 + threadIdx.x % 8 * 4; }

  // Adds the products of 4 k's of each row with 4 columns of weights.
  __device__ static void multiply_chunk(const float* state, const float4* weights, float* sums) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      const float4 s = *reinterpret_cast<const float4*>(state + r * K);
#pragma unroll
      for (int c = 0; c < LANE_COLUMNS; c++) {
        float sum = sums[r * LANE_COLUMNS + c];
        sum = fmaf(s.x, weights[c].x, sum);
        sum = fmaf(s.y, weights[c].y, sum);
        sum = fmaf(s.z, weights[c].z, sum);
        sums[r * LANE_COLUMNS + c] = fmaf(s.w, weights[c].w, sum);
      }
    }
  }

  // Of HAVE sums, gives those of the other half of the lanes with bit BIT to the lane there, and adds up what it gets.
  template <int HAVE, int BIT>
  __device__ static void reduce(float* sums, int lane, int& first) {
    if constexpr (HAVE > 1) {
      const bool upper = lane & BIT;
#pragma unroll
      for (int i = 0; i < HAVE / 2; i++) {
        const float keep = upper ? sums[HAVE / 2 + i] : sums[i], give = upper ? sums[i] : sums[HAVE / 2 + i];
        sums[i] = keep + exchange_lanes(give, BIT);
      }
      if (upper) first += HAVE / 2;
    } else {
      sums[0] += exchange_lanes(sums[0], BIT);
    }
  }

  // 4 k's of the lane's columns, from (k, j) on.
  template <class Pass>
  __device__ static void load_chunk(const Pass& pass, int k, int j, float4* weights) {
#pragma unroll
    for (int c = 0; c < LANE_COLUMNS; c += 4) load_square(pass, k, j + c, weights + c);
  }

  // 4 k's of 4 columns, 16 bytes at a time where the rows of the matrix all begin at a multiple of 16.
  template <class Pass>
  __device__ static void load_square(const Pass& pass, int k, int j, float4* weights) {
    const int H = pass.H;
    const bool aligned = H % 4 == 0 && reinterpret_cast<unsigned long long>(pass.Whh) % 16 == 0;
    float square[4][4];  // neighbours in memory last
#pragma unroll
    for (int a = 0; a < 4; a++) {
      const int ka = Pass::COLUMNS_CONTIGUOUS ? k + a : k, ja = Pass::COLUMNS_CONTIGUOUS ? j : j + a;
      if (aligned) {
        float4 four = {0, 0, 0, 0};
        if (ka < H && ja < H) four = *reinterpret_cast<const float4*>(pass.weight(ka, ja));
        square[a][0] = four.x, square[a][1] = four.y, square[a][2] = four.z, square[a][3] = four.w;
      } else {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int ki = Pass::COLUMNS_CONTIGUOUS ? ka : ka + i, ji = Pass::COLUMNS_CONTIGUOUS ? ja + i : ja;
          square[a][i] = ki < H && ji < H ? *pass.weight(ki, ji) : 0;
        }
      }
    }
#pragma unroll
    for (int c = 0; c < 4; c++)
      weights[c] = Pass::COLUMNS_CONTIGUOUS ? float4{square[0][c], square[1][c], square[2][c], square[3][c]}
                                            : float4{square[c][0], square[c][1], square[c][2], square[c][3]};
  }
};
