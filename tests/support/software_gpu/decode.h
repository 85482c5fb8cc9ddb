// Decodes the statements of one function.

#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "module.h"

namespace software_gpu {

std::vector<std::string_view> parts_of(std::string_view opcode);

class Decoder {
public:
    Decoder(const Module& module, const FunctionText& text, Function& function, std::string& error)
        : module(module), text(text), function(function), error(error) {}

    // All of it; false with `error` set.
    bool run(const std::vector<VariableText>& module_variables);

private:
    const Module& module;
    const FunctionText& text;
    Function& function;
    std::string& error;
    std::map<std::string, uint32_t, std::less<>> shared_variables, local_variables, labels;
    std::map<std::pair<uint8_t, uint64_t>, Operand> constants;
    uint32_t carry_register = 0;
    bool has_carry = false;

    const StatementText* statement = nullptr;  // the one that is decoded
    std::vector<std::string_view> parts;       // of its opcode
    Instruction made;

    bool fail(const std::string& what);
    bool has(std::string_view part) const;
    void place_variables(const std::vector<VariableText>& variables);
    bool decode(const StatementText& given, Instruction& into);

    Operand constant(uint8_t bytes, uint64_t value);
    uint32_t carry();
    bool special(std::string_view name, Operand& found);
    bool symbol(std::string_view name, uint64_t& address, Space& space);
    bool source(const OperandText& text, uint8_t bytes, Operand& made);
    bool destination(const OperandText& text, Operand& made);
    bool list(const OperandText& text, uint8_t bytes, bool results, std::vector<Operand>& into);
    bool address(const OperandText& text, Operand& base, int64_t& offset, Space space);
    bool operands(size_t least, size_t most);

    bool elementwise(const Operation* operation, size_t skipped = 0);
    bool packing();
    // Everything else, in decode_others.cpp. False: not known (`error` may say more).
    bool other_instruction();
    bool parameter();
    bool transfer();
    bool atomic();
    bool copy();
    bool lanes();
    bool matrix();
    bool warp_group_matrix();
    bool control();
};

}  // namespace software_gpu
