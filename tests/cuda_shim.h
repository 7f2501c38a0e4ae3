// A CUDA kernel as plain C++: blocks and threads are loops. For kernels whose threads do not talk.
#include <math.h>

#define __global__
#define __device__
#define __forceinline__ inline

struct Index {
    int x, y, z;
};
struct uint4 {
    unsigned int x, y, z, w;
};

static thread_local Index blockIdx, blockDim, threadIdx;

template <typename Call> static void launch(const int* grid, const int* block, Call call) {
    blockDim = {block[0], block[1], block[2]};
    // The last block first: whoever leans on the order of blocks is found out.
    for (int z = grid[2] - 1; z >= 0; --z)
        for (int y = grid[1] - 1; y >= 0; --y)
            for (int x = grid[0] - 1; x >= 0; --x) {
                blockIdx = {x, y, z};
                for (int tz = 0; tz < block[2]; ++tz)
                    for (int ty = 0; ty < block[1]; ++ty)
                        for (int tx = 0; tx < block[0]; ++tx) {
                            threadIdx = {tx, ty, tz};
                            call();
                        }
            }
}
