// Frames as they leave a decoder, to the pixels that an engine takes: colour conversion, resize and crop in
// one pass, and the gathering of windows. NVRTC compiles this file; tests compile it as C++ behind a shim,
// so nothing here may talk between threads.
//
// The arithmetic is that of vfx_runtime.resize and taps: columns are filtered first and rounded to uint8, then rows,
// with 22-bit weights from the same tap tables; or that of OpenCV, see taps.opencv_taps. A thread makes one column of STRIP output rows: it reads
// each source row once, filters it across, and adds it to the output rows that it belongs to.

typedef unsigned char u8;
typedef unsigned short u16;

#define BITS 22
#define STRIP 8
#define MOST_SURFACES 16
#define MOST_FRAMES 64

// One decoded picture. Of RGB only `luma` is used: three bytes a pixel. Of two planes `chroma` holds Cb and
// Cr in turns, of three Cb alone.
struct Surface {
    const void* luma;
    const void* chroma;
    const void* chroma_red;
    long long luma_pitch;  // bytes from row to row
    long long chroma_pitch;
    u8* out;  // where its pixels go
};

// Passed by value: pictures and frames lie where they lie, and no table of addresses has to be copied first.
struct Surfaces {
    Surface at[MOST_SURFACES];
};
// What is gathered of a resized frame: where it begins, null for a blank one, and bytes from row to row.
struct Frame {
    const u8* first;
    long long pitch;
};
struct Frames {
    Frame at[MOST_FRAMES];
};

// How one size of frame becomes the input's size; the sizes are those of the picture as displayed.
struct Geometry {
    int width, height;  // of the source
    int out_width, out_height;
    int column_taps, row_taps;
    int transpose, flip_x, flip_y;  // displayed (x, y) -> stored: flip, then swap the axes
    int opencv;                     // weights of 11 bits, columns not rounded, rows one outside the source
};

// The tap tables of vfx_runtime.resize.FramePlan.
struct Taps {
    const int* row_start;     // [out_height]
    const int* row_weight;    // [out_height, row_taps]
    const int* column_start;  // [out_width]
    const int* column_weight; // [out_width, column_taps]
};

// Y'CbCr to RGB, in one of two ways. The first is the arithmetic of FFmpeg's unscaled conversion from 8 bits,
// to the bit: products of 16-bit numbers of which the upper half is kept. The second is H.273 in float32.
struct Colour {
    int as_ffmpeg;
    int black_8, luma_gain, red_cr, green_cb, green_cr, blue_cb;
    float black, luma_scale, red_v, green_u, green_v, blue_u;
    int interpolate;  // chroma between its neighbours, else the sample of each 2x2 block as it is
    int left;         // chroma lies on even columns, else between two
    int top;          // chroma lies on even rows, else between two
};

static __device__ __forceinline__ int clamp_to(int value, int top) {
    return value < 0 ? 0 : (value > top ? top : value);
}

static __device__ __forceinline__ int to_u8(float value) {
    return clamp_to((int)floorf(value + 0.5f), 255);
}

static __device__ __forceinline__ int rounded(int sum) { return clamp_to((sum + (1 << (BITS - 1))) >> BITS, 255); }

// What the columns of a row add up to, what a row adds to an output, and what comes of the sum.
static __device__ __forceinline__ int across_row(int opencv, int sum) { return opencv ? sum >> 4 : rounded(sum); }

static __device__ __forceinline__ int down(int opencv, int weight, int row) {
    return opencv ? (weight * row) >> 16 : weight * row;
}

static __device__ __forceinline__ u8 finished(int opencv, int sum) {
    return (u8)(opencv ? clamp_to((sum + 2) >> 2, 255) : rounded(sum));
}

struct Rgb {
    int red, green, blue;
};

// Samples of 16 bits hold their significant bits on top, so 256 steps of them are one of 8 bits.
template <typename T> struct Scale;
template <> struct Scale<u8> { static __device__ __forceinline__ float unit() { return 1.0f; } };
template <> struct Scale<u16> { static __device__ __forceinline__ float unit() { return 1.0f / 256.0f; } };

static __device__ __forceinline__ Rgb converted_as_ffmpeg(const Colour& colour, int luma, int blue, int red) {
    const int cb = 8 * blue - 1024, cr = 8 * red - 1024;
    const int base = ((8 * luma - colour.black_8) * colour.luma_gain) >> 16;
    Rgb rgb;
    rgb.red = clamp_to(base + ((cr * colour.red_cr) >> 16), 255);
    rgb.green = clamp_to(base + ((cb * colour.green_cb) >> 16) + ((cr * colour.green_cr) >> 16), 255);
    rgb.blue = clamp_to(base + ((cb * colour.blue_cb) >> 16), 255);
    return rgb;
}

// A source of three planes of 8 bits, as decoders on a CPU leave it; always converted as FFmpeg does.
struct Planar {
    const Surface& surface;
    const Colour& colour;

    __device__ __forceinline__ Rgb at(int x, int y) const {
        const long long chroma = (long long)(y >> 1) * surface.chroma_pitch + (x >> 1);
        return converted_as_ffmpeg(
            colour,
            ((const u8*)surface.luma)[(long long)y * surface.luma_pitch + x],
            ((const u8*)surface.chroma)[chroma],
            ((const u8*)surface.chroma_red)[chroma]);
    }
};

// A source of two planes, NV12 (u8) or P016 (u16): Cb and Cr lie in turns, half as many each way.
template <typename T> struct SemiPlanar {
    const Surface& surface;
    const Colour& colour;
    int width, height;  // as stored

    __device__ __forceinline__ const T* chroma_row(int y) const {
        return (const T*)((const u8*)surface.chroma + (long long)y * surface.chroma_pitch);
    }

    __device__ __forceinline__ Rgb at(int x, int y) const {
        const T luma = ((const T*)((const u8*)surface.luma + (long long)y * surface.luma_pitch))[x];
        if (!colour.as_ffmpeg) return real(luma, x, y);
        const T* row = chroma_row(y >> 1);
        return converted_as_ffmpeg(colour, luma, row[x & ~1], row[x | 1]);
    }

    __device__ __forceinline__ Rgb real(T luma, int x, int y) const {
        int cb, cr;  // in sixteenths
        if (colour.interpolate) {
            // Positions in quarters of a chroma sample: on the sample, or a quarter beside it.
            const int quarters_x = colour.left ? 2 * x : 2 * x - 1;
            const int quarters_y = colour.top ? 2 * y : 2 * y - 1;
            const int last_x = (width + 1) / 2 - 1, last_y = (height + 1) / 2 - 1;
            const int x0 = clamp_to(quarters_x >> 2, last_x), x1 = clamp_to((quarters_x >> 2) + 1, last_x);
            const int y0 = clamp_to(quarters_y >> 2, last_y), y1 = clamp_to((quarters_y >> 2) + 1, last_y);
            const int fx = quarters_x & 3, fy = quarters_y & 3;
            const T* upper = chroma_row(y0);
            const T* lower = chroma_row(y1);
            cb = (4 - fy) * ((4 - fx) * upper[2 * x0] + fx * upper[2 * x1]) +
                 fy * ((4 - fx) * lower[2 * x0] + fx * lower[2 * x1]);
            cr = (4 - fy) * ((4 - fx) * upper[2 * x0 + 1] + fx * upper[2 * x1 + 1]) +
                 fy * ((4 - fx) * lower[2 * x0 + 1] + fx * lower[2 * x1 + 1]);
        } else {
            const T* row = chroma_row(y >> 1);
            cb = 16 * row[x & ~1];
            cr = 16 * row[x | 1];
        }
        const float unit = Scale<T>::unit();
        const float u = (float)cb * (unit / 16.0f) - 128.0f;
        const float v = (float)cr * (unit / 16.0f) - 128.0f;
        const float base = colour.luma_scale * ((float)luma * unit - colour.black);
        Rgb rgb;
        rgb.red = to_u8(base + colour.red_v * v);
        rgb.green = to_u8(base + colour.green_u * u + colour.green_v * v);
        rgb.blue = to_u8(base + colour.blue_u * u);
        return rgb;
    }
};

struct Packed {
    const Surface& surface;

    __device__ __forceinline__ Rgb at(int x, int y) const {
        const u8* pixel = (const u8*)surface.luma + (long long)y * surface.luma_pitch + 3 * x;
        Rgb rgb;
        rgb.red = pixel[0];
        rgb.green = pixel[1];
        rgb.blue = pixel[2];
        return rgb;
    }
};

static __device__ __forceinline__ int stored_width(const Geometry& geometry) {
    return geometry.transpose ? geometry.height : geometry.width;
}

static __device__ __forceinline__ int stored_height(const Geometry& geometry) {
    return geometry.transpose ? geometry.width : geometry.height;
}

template <typename Source>
static __device__ __forceinline__ Rgb displayed(const Source& source, const Geometry& geometry, int x, int y) {
    if (geometry.flip_x) x = geometry.width - 1 - x;
    if (geometry.flip_y) y = geometry.height - 1 - y;
    return geometry.transpose ? source.at(y, x) : source.at(x, y);
}

// A thread of grid (output columns, strips of output rows, surfaces).
template <typename Source>
static __device__ __forceinline__ void resize_strip(
    const Source& source, const Geometry& geometry, const Taps& taps, u8* out) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    const int top = (blockIdx.y * blockDim.y + threadIdx.y) * STRIP;
    if (x >= geometry.out_width || top >= geometry.out_height) return;
    const int rows = geometry.out_height - top < STRIP ? geometry.out_height - top : STRIP;
    int red[STRIP], green[STRIP], blue[STRIP];
#pragma unroll
    for (int i = 0; i < STRIP; ++i) red[i] = green[i] = blue[i] = 0;
    const int end = taps.row_start[top + rows - 1] + geometry.row_taps;
    const int left = taps.column_start[x];
    const int* across = taps.column_weight + x * geometry.column_taps;
    const int opencv = geometry.opencv;
    for (int y = taps.row_start[top]; y < end; ++y) {
        const int from = clamp_to(y, geometry.height - 1);
        int sum_red = 0, sum_green = 0, sum_blue = 0;
        for (int i = 0; i < geometry.column_taps; ++i) {
            const Rgb rgb = displayed(source, geometry, left + i, from);
            sum_red += across[i] * rgb.red;
            sum_green += across[i] * rgb.green;
            sum_blue += across[i] * rgb.blue;
        }
        const int row_red = across_row(opencv, sum_red);
        const int row_green = across_row(opencv, sum_green);
        const int row_blue = across_row(opencv, sum_blue);
#pragma unroll
        for (int i = 0; i < STRIP; ++i) {
            const int tap = i < rows ? y - taps.row_start[top + i] : -1;
            if (tap >= 0 && tap < geometry.row_taps) {
                const int weight = taps.row_weight[(top + i) * geometry.row_taps + tap];
                red[i] += down(opencv, weight, row_red);
                green[i] += down(opencv, weight, row_green);
                blue[i] += down(opencv, weight, row_blue);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < STRIP; ++i) {
        if (i < rows) {
            u8* pixel = out + ((long long)(top + i) * geometry.out_width + x) * 3;
            pixel[0] = finished(opencv, red[i]);
            pixel[1] = finished(opencv, green[i]);
            pixel[2] = finished(opencv, blue[i]);
        }
    }
}

extern "C" __global__ void frames_from_nv12(Surfaces surfaces, Geometry geometry, Colour colour, Taps taps) {
    const Surface surface = surfaces.at[blockIdx.z];
    const SemiPlanar<u8> source = {surface, colour, stored_width(geometry), stored_height(geometry)};
    resize_strip(source, geometry, taps, surface.out);
}

extern "C" __global__ void frames_from_p016(Surfaces surfaces, Geometry geometry, Colour colour, Taps taps) {
    const Surface surface = surfaces.at[blockIdx.z];
    const SemiPlanar<u16> source = {surface, colour, stored_width(geometry), stored_height(geometry)};
    resize_strip(source, geometry, taps, surface.out);
}

extern "C" __global__ void frames_from_i420(Surfaces surfaces, Geometry geometry, Colour colour, Taps taps) {
    const Surface surface = surfaces.at[blockIdx.z];
    const Planar source = {surface, colour};
    resize_strip(source, geometry, taps, surface.out);
}

extern "C" __global__ void frames_from_rgb(Surfaces surfaces, Geometry geometry, Colour colour, Taps taps) {
    const Surface surface = surfaces.at[blockIdx.z];
    const Packed source = {surface};
    resize_strip(source, geometry, taps, surface.out);
}

// Byte `at` of what is gathered of a frame, rows of `row` bytes one after the other.
static __device__ __forceinline__ unsigned int gathered_byte(const Frame& frame, int row, int blank_rgb, int at) {
    if (!frame.first) return (blank_rgb >> (8 * (at % 3))) & 255;
    return frame.first[(at / row) * frame.pitch + at % row];
}

// 16 bytes from any address. A crop begins on any byte, and memory is read in words that begin on whole ones.
static __device__ __forceinline__ uint4 sixteen_bytes(const u8* from) {
    const int over = (int)((unsigned long long)from & 15);
    if (!over) return *(const uint4*)from;
    const int shift = 8 * (over & 3);
    const unsigned int* words = (const unsigned int*)(from - (over & 3));
    unsigned int low = words[0], made[4];
    for (int i = 0; i < 4; ++i) {
        // The fifth word only where some of its bytes are wanted: behind the last one memory may end.
        const unsigned int high = shift || i < 3 ? words[i + 1] : 0;
        made[i] = (unsigned int)(((unsigned long long)high << 32 | low) >> shift);
        low = high;
    }
    uint4 value;
    value.x = made[0];
    value.y = made[1];
    value.z = made[2];
    value.w = made[3];
    return value;
}

// Windows out of resized frames, wherever those lie: frame i of the output is `chunks` times 16 bytes of the i-th
// frame, in rows of `row` bytes; of a whole frame that is one row. A thread copies one chunk. Grid: x over the
// chunks of a frame, y over the frames.
extern "C" __global__ void gather_chunks(Frames frames, int row, int chunks, int blank_rgb, uint4* out) {
    const int chunk = blockIdx.x * blockDim.x + threadIdx.x;
    if (chunk >= chunks) return;
    const Frame frame = frames.at[blockIdx.y];
    const int y = chunk * 16 / row, x = chunk * 16 - y * row;
    uint4 value;
    if (frame.first && x + 16 <= row) {
        value = sixteen_bytes(frame.first + y * frame.pitch + x);
    } else {
        unsigned int words[4];
        for (int word = 0; word < 4; ++word) {
            words[word] = 0;
            for (int i = 0; i < 4; ++i)
                words[word] |= gathered_byte(frame, row, blank_rgb, chunk * 16 + word * 4 + i) << (8 * i);
        }
        value.x = words[0];
        value.y = words[1];
        value.z = words[2];
        value.w = words[3];
    }
    out[(long long)blockIdx.y * chunks + chunk] = value;
}

// The same, byte by byte, for outputs that are not a whole number of chunks.
extern "C" __global__ void gather_bytes(Frames frames, int row, int bytes, int blank_rgb, u8* out) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= bytes) return;
    out[(long long)blockIdx.y * bytes + at] = (u8)gathered_byte(frames.at[blockIdx.y], row, blank_rgb, at);
}
