#include "definitions.h"

#include <algorithm>
#include <set>

namespace software_gpu {
namespace {

using Bits = std::vector<uint64_t>;  // a set of registers

class Definitions {
public:
    explicit Definitions(Function& function) : function(function), code(function.instructions) {
        for (uint8_t bytes : {1, 2, 4, 8}) {
            base[bytes] = count;
            count += function.registers[bytes];
        }
    }

    void run() {
        find_runs();
        std::vector<Bits> known(starts.size(), Bits((count + 63) / 64, ~uint64_t(0)));  // at the start of each run
        known[0] = Bits((count + 63) / 64, 0);
        for (auto& one : function.constants) set(known[0], one.at);
        for (auto& one : function.specials) set(known[0], one.at);
        for (bool changed = true; changed;) {
            changed = false;
            for (size_t run = 0; run < starts.size(); run++) {
                Bits now = known[run];
                size_t end = run + 1 < starts.size() ? starts[run + 1] : code.size();
                for (size_t at = starts[run]; at < end; at++) define(now, code[at]);
                const Instruction& last = code[end - 1];
                if (last.kind == Kind::branch) changed |= meet(known[run_at[last.number]], now);
                bool goes_on = last.guarded || (last.kind != Kind::branch && last.kind != Kind::exit);
                if (goes_on && run + 1 < starts.size()) changed |= meet(known[run + 1], now);
            }
        }
        mark(known);
    }

private:
    Function& function;
    std::vector<Instruction>& code;
    uint32_t base[9] = {}, count = 0;
    std::vector<size_t> starts;  // of the runs of instructions without a jump in or out
    std::vector<size_t> run_at;  // by instruction that starts one

    uint32_t id(Operand one) const { return base[one.bytes] + one.index; }
    void set(Bits& bits, Operand one) const {
        if (one.bytes) bits[id(one) / 64] |= uint64_t(1) << id(one) % 64;
    }
    bool has(const Bits& bits, Operand one) const { return bits[id(one) / 64] >> id(one) % 64 & 1; }

    void define(Bits& now, const Instruction& one) const {
        if (one.guarded) return;
        for (auto& out : one.out) set(now, out);
    }
    static bool meet(Bits& into, const Bits& from) {
        bool changed = false;
        for (size_t i = 0; i < into.size(); i++) {
            uint64_t both = into[i] & from[i];
            changed |= both != into[i];
            into[i] = both;
        }
        return changed;
    }

    void find_runs() {
        std::set<size_t> found = {0};
        for (size_t at = 0; at < code.size(); at++) {
            if (code[at].kind != Kind::branch && code[at].kind != Kind::exit) continue;
            if (code[at].kind == Kind::branch) found.insert(code[at].number);
            if (at + 1 < code.size()) found.insert(at + 1);
        }
        starts.assign(found.begin(), found.end());
        run_at.assign(code.size(), 0);
        for (size_t run = 0; run < starts.size(); run++) run_at[starts[run]] = run;
    }

    void mark(const std::vector<Bits>& known) {
        std::set<uint32_t> tracked, defined;
        for (auto& one : code)
            for (auto& out : one.out)
                if (out.bytes) defined.insert(id(out));
        for (size_t run = 0; run < starts.size(); run++) {
            Bits now = known[run];
            size_t end = run + 1 < starts.size() ? starts[run + 1] : code.size();
            for (size_t at = starts[run]; at < end; at++) {
                Kind kind = code[at].kind;
                auto unsure = [&](Operand one, bool is_guard = false) {
                    if (!one.bytes || has(now, one)) return;
                    // What is not meant to hold anything, such as a half of a word, is a register that nobody writes.
                    bool computes = !is_guard && (kind == Kind::elementwise || kind == Kind::pack);
                    if (computes && !defined.count(id(one))) return;
                    code[at].checks_inputs = true;
                    if (tracked.insert(id(one)).second) function.tracked[one.bytes].push_back(one.index);
                };
                for (auto& in : code[at].in) unsure(in);
                if (code[at].guarded) unsure({1, code[at].guard}, true);
                define(now, code[at]);
            }
        }
        for (auto& one : code)
            for (auto& out : one.out) one.marks_outputs |= out.bytes && tracked.count(id(out));
    }
};

}  // namespace

void find_definitions(Function& function) { Definitions(function).run(); }

}  // namespace software_gpu
