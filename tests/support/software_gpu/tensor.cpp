// Matrix instructions of a warp.
#include "tensor.h"

#include "elementwise.h"
#include "tensor_elements.h"

namespace software_gpu {
namespace {

// "m16n8k32" to {16, 8, 32}.
bool read_shape(std::string_view text, int (&sizes)[3]) {
    size_t at = 0;
    for (int which = 0; which < 3; which++) {
        if (at >= text.size() || text[at++] != "mnk"[which]) return false;
        for (sizes[which] = 0; at < text.size() && text[at] >= '0' && text[at] <= '9'; at++)
            sizes[which] = 10 * sizes[which] + text[at] - '0';
    }
    return at == text.size();
}

bool pairs(Element a, Element b) {
    auto class_of = [](Element element) { return is_integer(element) ? Element::s8 : element; };
    auto small = [](Element element) { return element == Element::e4m3 || element == Element::e5m2; };
    return class_of(a) == class_of(b) || (small(a) && small(b));
}

// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
std::optional<Mma> parse_mma(std::string_view text) {
    Opcode o(text);
    int sizes[3];
    bool saturates = o.has("satfinite");
    if (o.name != "mma" || o.parts.size() != (saturates ? 10u : 9u) || !read_shape(o.at(2), sizes)) return {};
    if (o.at(0) != "sync" || o.at(1) != "aligned" || o.at(3) != "row" || o.at(4) != "col") return {};
    auto d = element_named(o.at(-4)), a = element_named(o.at(-3)), b = element_named(o.at(-2)),
         c = element_named(o.at(-1));
    if (!d || !a || !b || !c || !pairs(*a, *b) || *a >= Element::f32) return {};
    int k = sizes[2], step = 16 / bytes_of(*a);  // of k, in a register of each thread
    if (sizes[0] != 16 || sizes[1] != 8 || (k != step && k != 2 * step)) return {};
    bool whole_sums = *c == Element::s32 && *d == Element::s32;
    bool float_sums = (*c == Element::f32 || *c == Element::f16) && (*d == Element::f32 || *d == Element::f16);
    if (is_integer(*a) ? !whole_sums : !float_sums || saturates) return {};
    auto sums = [](Element element) { return element == Element::f16 ? 2 : 4; };
    return Mma{16, 8, k, *a, *b, *c, *d, k / step * 2, k / step, sums(*c), sums(*d), saturates};
}

template <class T>
void multiply_as(
    const Mma& mma, uint32_t* const* d, const uint32_t* const* a, const uint32_t* const* b, const uint32_t* const* c) {
    T left[16][32], right[32][8], sum[16][8];
    for_each_of_a(mma.a, mma.k, [&](int r, int t, int shift, int row, int column) {
        left[row][column] = T(value_of(mma.a, a[r][t] >> shift));
    });
    for_each_of_b(mma.b, mma.k, [&](int r, int t, int shift, int row, int column) {
        right[row][column] = T(value_of(mma.b, b[r][t] >> shift));
    });
    for_each_of_c(mma.c, 8, [&](int r, int t, int shift, int row, int column) {
        sum[row][column] = accumulator<T>(mma.c, c[r][t] >> shift);
    });
    for (int row = 0; row < 16; row++) {
        T added[8] = {};
        for (int k = 0; k < mma.k; k++)
            for (int column = 0; column < 8; column++) added[column] += left[row][k] * right[k][column];
        for (int column = 0; column < 8; column++) {
            if (mma.saturated) {
                int64_t exact = int64_t(sum[row][column]) + int64_t(added[column]);
                sum[row][column] = T(std::clamp<int64_t>(exact, INT32_MIN, INT32_MAX));
            } else if constexpr (std::is_same_v<T, int32_t>)
                sum[row][column] = int32_t(uint32_t(sum[row][column]) + uint32_t(added[column]));
            else
                sum[row][column] += added[column];
        }
    }
    for_each_of_c(mma.d, 8, [&](int r, int t, int shift, int row, int column) {
        put_accumulator<T>(mma.d, d[r][t], shift, sum[row][column]);
    });
}

}  // namespace

Mma find_mma(std::string_view opcode) { return parse_mma(opcode).value_or(Mma{}); }

void multiply(
    const Mma& mma, uint32_t* const* d, const uint32_t* const* a, const uint32_t* const* b, const uint32_t* const* c) {
    mma.d == Element::s32 ? multiply_as<int32_t>(mma, d, a, b, c) : multiply_as<float>(mma, d, a, b, c);
}

// ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16
MatrixMove find_matrix_move(std::string_view opcode) {
    Opcode o(opcode);
    bool transposed = o.has("trans"), store = o.name == "stmatrix";
    auto space = o.at(-2), count = o.at(3);
    if ((o.name != "ldmatrix" && !store) || o.parts.size() != (transposed ? 7u : 6u) || o.at(-1) != "b16") return {};
    if (o.at(0) != "sync" || o.at(1) != "aligned" || o.at(2) != "m8n8" || (transposed && o.at(4) != "trans")) return {};
    if ((space != "shared" && space != "shared::cta") || (count != "x1" && count != "x2" && count != "x4")) return {};
    return {count[1] - '0', transposed, store};
}

void load_matrices(const MatrixMove& move, uint32_t* const* registers, const uint8_t* const* rows) {
    for (int matrix = 0; matrix < move.count; matrix++)
        for (int t = 0; t < 32; t++) {
            uint16_t pair[2];
            for (int i = 0; i < 2; i++) {
                int row = t / 4, column = t % 4 * 2 + i;
                if (move.transposed) std::swap(row, column);
                std::memcpy(&pair[i], rows[8 * matrix + row] + 2 * column, 2);
            }
            registers[matrix][t] = pair[0] | uint32_t(pair[1]) << 16;
        }
}

void store_matrices(const MatrixMove& move, const uint32_t* const* registers, uint8_t* const* rows) {
    for (int matrix = 0; matrix < move.count; matrix++)
        for (int t = 0; t < 32; t++)
            for (int i = 0; i < 2; i++) {
                int row = t / 4, column = t % 4 * 2 + i;
                if (move.transposed) std::swap(row, column);
                auto half = uint16_t(registers[matrix][t] >> (16 * i));
                std::memcpy(rows[8 * matrix + row] + 2 * column, &half, 2);
            }
}

}  // namespace software_gpu
