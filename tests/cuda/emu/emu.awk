# Makes a .cu file plain C++ for emu.h: launches, and shared memory whose size the launch decides.
{ text = text $0 "\n" }
END {
    while (match(text, /extern __shared__( __align__\([0-9]+\))? [a-z0-9_ ]+ [a-z]+\[\];/)) {
        decl = substr(text, RSTART, RLENGTH)
        head = substr(text, 1, RSTART - 1)
        tail = substr(text, RSTART + RLENGTH)
        sub(/extern __shared__( __align__\([0-9]+\))? /, "", decl)
        sub(/\[\];/, "", decl)
        name = decl
        sub(/.* /, "", name)
        type = substr(decl, 1, length(decl) - length(name) - 1)
        text = head type " *" name " = (" type " *)emu_dynamic;" tail
    }
    while (match(text, /[a-z_0-9]+(<[^<>;]*>)?[ \n]*<<</)) {
        head = substr(text, 1, RSTART - 1)
        kernel = substr(text, RSTART, RLENGTH - 3)
        rest = substr(text, RSTART + RLENGTH)
        at = index(rest, ">>>(")
        grid = substr(rest, 1, at - 1)
        rest = substr(rest, at + 4)
        at = index(rest, ");")
        args = substr(rest, 1, at - 1)
        name = kernel
        sub(/[< \n].*/, "", name)
        text = head "emu_launch(\"" name "\", emu_grid(" grid "), emu_bind(" kernel ", " args "));" \
            substr(rest, at + 2)
    }
    printf "%s", text
}
