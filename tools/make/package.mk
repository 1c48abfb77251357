# Installation and the Debian package. The units and the config name /usr; another PREFIX is written
# into what is installed.

PREFIX ?= /usr/local
UNIT_DIR ?= /lib/systemd/system
SHARE := $(DESTDIR)$(PREFIX)/share
prefixed = sed 's|/usr/bin/|$(PREFIX)/bin/|; s|/usr/share/|$(PREFIX)/share/|' $(1) > $(2) && chmod 644 $(2)

.PHONY: install deb test-deb

install: $(BIN)/spand $(BIN)/spand-bench ## copy programs, demo model, config, units and docs under DESTDIR
	install -D -m 755 $(BIN)/spand $(DESTDIR)$(PREFIX)/bin/spand
	install -D -m 755 $(BIN)/spand-plan $(DESTDIR)$(PREFIX)/bin/spand-plan
	install -D -m 755 $(BIN)/spand-bench $(DESTDIR)$(PREFIX)/bin/spand-bench
	install -d $(SHARE)/spand/models/demo-llama $(SHARE)/doc/spand/examples $(DESTDIR)/etc/spand $(DESTDIR)$(UNIT_DIR)
	install -m 644 $(wildcard models/demo-llama/*.*) $(SHARE)/spand/models/demo-llama
	install -m 644 README.md config/CONFIG.md $(SHARE)/doc/spand
	install -m 644 config/example-server.json config/default.json $(SHARE)/doc/spand/examples
	cp -r deploy $(SHARE)/doc/spand/examples/
	@$(call prefixed,systemd/spand.service,$(DESTDIR)$(UNIT_DIR)/spand.service)
	install -m 644 systemd/spand.socket $(DESTDIR)$(UNIT_DIR)/spand.socket
	install -D -m 644 systemd/spand.sysusers $(DESTDIR)/usr/lib/sysusers.d/spand.conf
	install -D -m 644 systemd/spand.tmpfiles $(DESTDIR)/usr/lib/tmpfiles.d/spand.conf
	@if [ -e $(DESTDIR)/etc/spand/spand.json ]; then echo "kept $(DESTDIR)/etc/spand/spand.json"; \
	else $(call prefixed,systemd/spand.json,$(DESTDIR)/etc/spand/spand.json); fi

deb: all ## build/spand_VERSION_ARCH.deb
	@sh tools/deb.sh $(BUILD) $(VERSION) $(MAKE)

test-deb: deb ## unpack the package and serve from it
	@sh tools/test_deb.sh $(BUILD)
